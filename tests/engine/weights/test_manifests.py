"""Full-size files without config: their networks have exactly the published names and shapes."""

import pytest
import torch
from checkpoint_files import P, header, manifest

from aiprod_engine.errors import CheckpointError
from aiprod_engine.weights import source
from aiprod_engine.weights.components import COMPONENTS
from aiprod_engine.weights.identity.identify import identify
from aiprod_engine.weights.keymap import PARTS, split, take
from aiprod_engine.weights.loading import configuration

FILES = {
    "audio-vae-2.0": ("audio_encoder", "audio_decoder"),
    "audio-vae-2.3": ("audio_encoder", "audio_decoder"),
    "audio-vae-2.5": ("audio_encoder", "audio_decoder"),
    "gemma3-12b-text": ("text_encoder", "text_vision"),
    "gemma3-12b-text-comfy": ("text_encoder", "text_vision"),
    "text-2.0": ("text_connector",),
    "text-2.3": ("text_connector",),
    "text-2.5": ("text_connector", "text_encoder"),
    "transformer-2.0-19b": ("transformer",),
    "transformer-2.3-22b": ("transformer",),
    "transformer-2.5-22b": ("transformer",),
    "upsampler-spatial-x2-2.0": ("upsampler",),
    "upsampler-spatial-x2-2.3": ("upsampler",),
    "upsampler-spatial-x1.5-2.3": ("upsampler",),
    "upsampler-temporal-x2": ("upsampler",),
    "video-vae-2.0": ("video_encoder", "video_decoder"),
    "video-vae-2.3": ("video_encoder", "video_decoder"),
    "video-vae-2.5-conv": ("video_encoder", "video_decoder"),
    "video-vae-2.5-diffusion": ("video_encoder", "video_decoder"),
    "vocoder-2.0": ("vocoder",),
    "vocoder-2.3": ("vocoder",),
    "vocoder-2.5": ("vocoder",),
}
UNUSED = ("inverse_basis", "type_emb", "spiece_model", "tokenizer_json", "hf_asset__", "vision_")
UNUSED += ("multi_modal_projector", "audio_projector")


@pytest.fixture
def open_as(monkeypatch):
    """Let every file name stand for the given headers."""

    def replace(*headers):
        monkeypatch.setattr(source, "open_headers", lambda _: headers)

    return replace


def built(kind):
    config = configuration(kind, "invented")
    with torch.device("meta"):
        state = COMPONENTS[kind].build(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def expected(kind, found):
    info = identify(found)
    rooms = split(found.tensors, info.layout, info.prefix, info.components)
    taken = {}
    for part in PARTS[kind]:
        taken |= take(part, rooms[part.component])
    return taken


@pytest.mark.parametrize("name", FILES)
def test_networks_from_presets_have_the_published_names_and_shapes(name, open_as):
    found = header(manifest(name))
    open_as(found)
    used = set()
    for kind in FILES[name]:
        keys = expected(kind, found)
        assert built(kind) == {inner: found.tensors[key].shape for inner, key in keys.items()}
        used |= set(keys.values())
    rest = found.tensors.keys() - used
    assert not [key for key in rest if not any(word in key for word in UNUSED)]


@pytest.mark.parametrize(("version", "projection"), [("2.3", "text-2.3"), ("2.5", "text-2.5")])
def test_connectors_in_the_transformer_file_and_the_projection_elsewhere(
    version, projection, open_as
):
    text = manifest(projection)
    transformer = manifest(f"transformer-{version}-22b")
    with_connectors = header(transformer | {k: v for k, v in text.items() if k.startswith(P)})
    other = header({k: v for k, v in text.items() if not k.startswith(P)}, name="other")
    open_as(with_connectors, other)
    config = configuration("text_connector", "invented")
    assert (config.width, config.layers) == (3840, 49)
    assert (config.video.width, config.audio.width) == (4096, 2048)


@pytest.mark.parametrize("version", ["2.0-19b", "2.3-22b"])
@pytest.mark.parametrize("modalities", ["video", "audio"])
def test_single_stream_builds(version, modalities, open_as):
    """Counts of the transformer page, section 12."""
    counts = {"2.0-19b": (1215, 1215), "2.3-22b": (1457, 1457)}
    open_as(header(manifest(f"transformer-{version}")))
    config = configuration("transformer", "invented", modalities)
    with torch.device("meta"):
        names = COMPONENTS["transformer"].build(config).state_dict()
    assert len(names) == counts[version][modalities == "audio"]


def test_a_video_only_extraction(open_as):
    shapes = {
        key: shape
        for key, shape in manifest("transformer-2.3-22b").items()
        if not any(word in key for word in ("audio", "av_ca", "a2v"))
    }
    open_as(header(shapes))
    assert len(built("transformer")) == len(shapes) == 1457
    with pytest.raises(CheckpointError, match="video stream only"):
        configuration("transformer", "invented", "av")


def test_a_2_5_repack_without_the_keyframe_marker(open_as):
    shapes = manifest("transformer-2.5-22b")
    open_as(header({k: v for k, v in shapes.items() if "keyframes_abs" not in k}))
    assert len(built("transformer")) == len(shapes) - 1
