"""Streamed decode holds the same bytes whatever the length; the whole clip at once does not."""

import pytest
import torch

from aiprod_engine.models.video_vae import VideoDecoder, VideoVAEConfig
from aiprod_engine.pipelines.decode import decode_ways, pixel_chunks
from aiprod_engine.types import AVLatent
from aiprod_engine.weights.presets import preset

LENGTHS = (49, 121, 257)


@pytest.fixture(scope="module", params=["2.0", "2.3"])
def decoder(request):
    """The published order of layers, one residual block a stage: 49 frames nearly fill it."""
    section = preset("vae", request.param)
    blocks = [
        [name, {"num_layers": 1} if name == "res_x" else options]
        for name, options in section["decoder_blocks"]
    ]
    section |= {"decoder_blocks": blocks, "decoder_base_channels": 8, "latent_channels": 8}
    with torch.device("meta"):
        decoder = VideoDecoder(VideoVAEConfig.from_metadata(section))
    state = {k: torch.randn(v.shape) * 0.05 for k, v in decoder.state_dict().items()}
    decoder.load_state_dict(state, assign=True)
    return decoder.eval().requires_grad_(False)


def decoding(decoder, frames, tiling):
    latent = torch.zeros(1, 8, (frames - 1) // 8 + 1, 2, 3)
    clip = AVLatent(latent, None, frames, 64, 96, 24.0)

    def run():
        assert sum(chunk.shape[2] for chunk in pixel_chunks(decoder, clip, tiling)) == frames

    return run


def test_streamed_peak_does_not_depend_on_the_length(decoder, peak_bytes):
    short, middle, long = (peak_bytes(decoding(decoder, n, "auto")) for n in LENGTHS)
    assert middle == pytest.approx(short, rel=0.05)
    assert long == pytest.approx(short, rel=0.05)


def test_the_whole_clip_at_once_grows_with_its_length(decoder, peak_bytes):
    short, _, long = (peak_bytes(decoding(decoder, n, "off")) for n in LENGTHS)
    assert long / short == pytest.approx(LENGTHS[2] / LENGTHS[0], rel=0.1)


@pytest.mark.parametrize("tiling", ["auto", "off", "tiled"])
def test_the_plan_of_a_way_is_what_it_holds(decoder, tiling, peak_bytes):
    (first, *_) = decode_ways(decoder.config, (16, 2, 3), 4, tiling)
    measured = peak_bytes(decoding(decoder, 121, tiling))
    picture = 3 * 121 * 64 * 96 * 4  # sums of tiles, on the CPU: tile, sum, finished frames
    assert first.activations == pytest.approx(
        measured, rel=0.25, abs=tiling == "tiled" and 3 * picture
    )
