"""Every published name goes to exactly one place, whatever the layout calls it."""

import itertools
import re

import pytest
from checkpoint_files import P, manifest, table

from aiprod_engine.errors import CheckpointError
from aiprod_engine.weights.keymap import PARTS, split, take

KEYS = table("checkpoint_key_maps.json")["versions"]
DIFFUSERS = table("diffusers_key_maps.json")["versions"]
OPS = table("key_ops.json")["published_maps"]
VERSIONS = ["2.0", "2.3"]
SINGLE = ("transformer", "connectors", "text_projection", "video_vae", "audio_vae", "vocoder")
FOLDERS = {
    "transformer": {"transformer"},
    "connectors": {"connectors", "text_projection"},
    "vae": {"video_vae"},
    "audio_vae": {"audio_vae"},
    "vocoder": {"vocoder"},
}
# The modules of the reference are called otherwise; ours keep the checkpoint's names.
THEIRS = {
    "text_embedding_projection.": "feature_extractor.",
    "video_embeddings_connector.": "video_connector.",
    "audio_embeddings_connector.": "audio_connector.",
}


def one_of_each(key):
    """A row stands for a range of block numbers; any will do, but not the same twice."""
    return key.replace("{i}", "1").replace("{j}", "2")


def by_kind(keys, layout="single", prefix=P, components=SINGLE):
    """kind -> {file key: name in the network}."""
    rooms = split(keys, layout, prefix, components)
    taken = {
        kind: [take(part, rooms.get(part.component, {})) for part in parts]
        for kind, parts in PARTS.items()
    }
    return {
        kind: {key: name for names in several for name, key in names.items()}
        for kind, several in taken.items()
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_single_file_names(version):
    rows = KEYS[version]["map"]
    found = by_kind({one_of_each(key) for key, *_ in rows})
    expected = {}
    for key, kind, name, _ in rows:
        for ours, theirs in THEIRS.items():
            name = re.sub(f"^{re.escape(theirs)}", ours, name)
        if not key.endswith("inverse_basis"):  # never read
            expected.setdefault(kind, {})[one_of_each(key)] = one_of_each(name)
    assert {kind: names for kind, names in found.items() if names} == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_single_file_shapes_are_those_of_the_manifests(version):
    """The map's tensors, with all their repetitions, are the published ones."""
    names = {"2.0": "transformer-2.0-19b", "2.3": "transformer-2.3-22b"}[version]
    known = manifest(names) | manifest(f"text-{version}") | manifest(f"video-vae-{version}")
    known |= manifest(f"audio-vae-{version}") | manifest(f"vocoder-{version}")
    rows = {key: shape for key, _, _, shape in KEYS[version]["map"]}
    for key, shape in rows.items():
        first = next(
            one
            for i, j in itertools.product(range(2), range(2))
            if (one := key.replace("{i}", str(i)).replace("{j}", str(j))) in known
        )
        assert known[first] == shape, key
    assert len(known) == KEYS[version]["tensors"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_diffusers_names(version, folder):
    rows = [
        (one_of_each(a), one_of_each(b)) for a, f, b in DIFFUSERS[version]["map"] if f == folder
    ]
    native = split([key for key, _ in rows], "single", P, SINGLE)
    theirs = split([key for _, key in rows], "diffusers", "", FOLDERS[folder])

    def places(rooms):
        return {key: (room, name) for room, names in rooms.items() for name, key in names.items()}

    native, theirs = places(native), places(theirs)
    assert {key: theirs[other] for key, other in rows} == native


@pytest.mark.parametrize("kind", OPS)
def test_published_maps(kind):
    """Ours agree with the reference except where a transformer would take what is not its own."""
    for key, expected in OPS[kind]:
        found = by_kind([key])[kind].get(key)
        if "embeddings_connector" in key and kind == "transformer":
            expected = None
        if "{" not in key and expected and key.endswith("statistics.channel"):
            expected = None  # an old statistic that nobody reads
        for ours, theirs in THEIRS.items():
            expected = [re.sub(f"^{re.escape(theirs)}", ours, name) for name in expected or []]
        assert ([found] if found else []) == expected, key


def test_prefixes_are_anchored_and_stripped_once():
    found = by_kind(["vae.encoder.vae.encoder.x", "x.vae.encoder.y", f"{P}{P}z"])
    assert found["video_encoder"] == {"vae.encoder.vae.encoder.x": "vae.encoder.x"}
    assert found["transformer"] == {f"{P}{P}z": f"{P}z"}


@pytest.mark.parametrize("prefix", [P, "diffusion_model.", ""])
def test_transformer_prefixes(prefix):
    names = [n.removeprefix(P) for n in manifest("transformer-2.3-22b")]
    connectors = [n.removeprefix(P) for n in manifest("text-2.3") if n.startswith(P)]
    keys = [prefix + name for name in (*names, *connectors)]
    found = by_kind(keys, prefix=prefix, components=("transformer", "connectors"))
    assert set(found["transformer"].values()) == set(names)
    assert set(found["text_connector"].values()) == set(connectors)


def test_split_files_of_others():
    assert by_kind(["aggregate_embed.weight"], prefix="", components=("text_projection",))[
        "text_connector"
    ] == {"aggregate_embed.weight": "text_embedding_projection.aggregate_embed.weight"}
    video_only = f"{P}embeddings_connector.learnable_registers"
    assert by_kind([video_only], components=("connectors",))["text_connector"] == {
        video_only: "video_embeddings_connector.learnable_registers"
    }
    bare = ["encoder.a", "decoder.b", "per_channel_statistics.mean-of-means", "foo.c"]
    found = by_kind(bare, prefix="", components=("video_vae",))
    assert set(found["video_encoder"].values()) == {
        "a",
        "per_channel_statistics.mean-of-means",
        "foo.c",
    }  # the last one will be reported
    assert "encoder.a" not in found["video_decoder"]


@pytest.mark.parametrize(
    "key",
    ["vae.per_channel_statistics.channel", "vae.per_channel_statistics.mean-of-stds",
     "vae.per_channel_statistics.mean-of-stds_over_std-of-means", "vocoder.resampler.kernel",
     "vocoder.mel_stft.stft_fn.inverse_basis", "spiece_model", "first_stage_model.x"],
)  # fmt: skip
def test_known_but_unused(key):
    assert not any(by_kind([key]).values())


def gemma_names():
    start = "language_model.model."
    return {n.removeprefix(start) for n in manifest("gemma3-12b-text") if n.startswith(start)}


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", "model.", ""])
def test_gemma_layouts(prefix):
    names = gemma_names()
    vision = ["vision_tower.x", "vision_model.y", "model.vision_tower.z", "spiece_model",
              "multi_modal_projector.a", "model.multi_modal_projector.b", "lm_head.weight",
              "language_model.lm_head.weight", "hf_asset__tokenizer_config.json"]  # fmt: skip
    keys = [*(prefix + name for name in names), *vision]
    found = by_kind(keys, prefix="", components=("gemma3_12b",))
    assert set(found["text_encoder"].values()) == names


LLAMA_CPP = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "blk.3.attn_norm.weight": "layers.3.input_layernorm.weight",
    "blk.3.post_attention_norm.weight": "layers.3.post_attention_layernorm.weight",
    "blk.3.ffn_norm.weight": "layers.3.pre_feedforward_layernorm.weight",
    "blk.3.post_ffw_norm.weight": "layers.3.post_feedforward_layernorm.weight",
    **{f"blk.3.attn_{n}.weight": f"layers.3.self_attn.{n}_proj.weight" for n in "qkv"},
    **{f"blk.3.attn_{n}_norm.weight": f"layers.3.self_attn.{n}_norm.weight" for n in "qk"},
    "blk.3.attn_output.weight": "layers.3.self_attn.o_proj.weight",
    **{f"blk.3.ffn_{n}.weight": f"layers.3.mlp.{n}_proj.weight" for n in ("gate", "up", "down")},
}


def test_llama_cpp_names():
    found = by_kind(LLAMA_CPP, "llama.cpp", "", ("gemma3_12b",))["text_encoder"]
    assert found == LLAMA_CPP
    layer_names = {name.replace("layers.3.", "layers.0.") for name in LLAMA_CPP.values()}
    assert layer_names == {
        name for name in gemma_names() if not name.startswith("layers.") or ".0." in name
    }


def test_two_keys_for_one_tensor():
    both = ["aggregate_embed.weight", "text_embedding_projection.aggregate_embed.weight"]
    with pytest.raises(CheckpointError, match="same tensor"):
        by_kind(both)
