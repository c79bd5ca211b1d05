"""What a file is, from its header alone."""

import json
from contextlib import suppress
from functools import cache

import pytest
import torch
from checkpoint_files import P, checkpoint, header, manifest, read, starting, table, write
from goldens import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from aiprod_engine.errors import CheckpointError, EngineError, MismatchError
from aiprod_engine.weights import check_fit, identify, inspect
from aiprod_engine.weights.configure import SECTIONS, component_section
from aiprod_engine.weights.files import open_headers
from aiprod_engine.weights.identity.info import generation
from aiprod_engine.weights.quant.formats import layer_formats

CASES = table("detect_cases.json")["cases"]
TEXT = ROOT / "text/files"
LAYER = f"{P}transformer_blocks.20.attn1.to_q"


def of(case):
    return header(case["tensors"], case["metadata"], case["name"])


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_published_headers(case):
    info = identify(of(case))
    found = {key: getattr(info, key) for key in case["expect"]}
    assert found | {"components": list(found["components"])} == case["expect"]
    assert info.distilled is None
    assert info.kind in info.summary()


@pytest.mark.parametrize(
    ("name", "kind", "version", "quant", "prefix"),
    [
        ("ltx2_20_tiny.safetensors", "checkpoint", "2.0", "none", P),
        ("ltx2_23_tiny.safetensors", "checkpoint", "2.3", "none", P),
        ("ltx2_20_tiny_fp8.safetensors", "checkpoint", "2.0", "fp8_scaled", P),
        ("ltx2_23_tiny_fp8.safetensors", "checkpoint", "2.3", "fp8_scaled", P),
        ("ltx2_23_tiny.gguf", "checkpoint", "2.3", "gguf", ""),
        ("ltx2_20_tiny_lora_lightricks.safetensors", "lora", None, "none", "diffusion_model."),
        ("ltx2_20_tiny_lora_comfy_alpha.safetensors", "lora", None, "none", "diffusion_model."),
        ("ltx2_23_tiny_lora_kohya.safetensors", "lora", None, "none", "lora_unet_"),
        ("ltx2_23_tiny_lora_diffusers.safetensors", "lora", None, "none", "transformer."),
        ("ltx2_20_tiny_lora_peft.safetensors", "lora", None, "none", "base_model.model."),
        ("ltx2_20_tiny_lora_bare_default.safetensors", "lora", None, "none", ""),
        ("ltx2_20_tiny_lora_distilled_bf16.safetensors", "lora", None, "none", "diffusion_model."),
        ("ltx2_23_tiny_iclora.safetensors", "lora", None, "none", "diffusion_model."),
    ],
)
def test_tiny_files(name, kind, version, quant, prefix):
    info = inspect(checkpoint(name))
    assert (info.kind, info.version, info.quant, info.prefix) == (kind, version, quant, prefix)
    assert ("ic_lora" in info.components) == ("iclora" in name)


@pytest.mark.parametrize(
    ("starts", "strip", "kind", "components", "prefix"),
    [
        ((P,), "", "checkpoint", ("transformer", "connectors"), P),
        ((P,), "model.", "checkpoint", ("transformer", "connectors"), "diffusion_model."),
        ((P,), P, "checkpoint", ("transformer", "connectors"), ""),
        (("vae.",), "", "video_vae", ("video_vae",), "vae."),
        (("vae.",), "vae.", "video_vae", ("video_vae",), ""),
        (("audio_vae.", "vocoder."), "", "audio_vae", ("audio_vae", "vocoder"), "audio_vae."),
        (("vocoder.",), "", "audio_vae", ("vocoder",), "vocoder."),
        (("text_embedding_projection.",), "", "connectors", ("text_projection",), ""),
        ((f"{P}video_emb", f"{P}audio_emb"), "", "connectors", ("connectors",), P),
    ],
)
@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_splits(version, starts, strip, kind, components, prefix):
    full = open_headers(checkpoint(f"ltx2_{version.replace('.', '')}_tiny.safetensors"))[0]
    shapes = {k: (i.dtype, i.shape) for k, i in starting(full.tensors, *starts).items()}
    info = identify(header({k.removeprefix(strip): v for k, v in shapes.items()}))
    assert (info.kind, info.components, info.prefix) == (kind, components, prefix)
    assert info.version.partition("|")[0] == version


@pytest.mark.parametrize(
    ("name", "kind", "version", "components"),
    [
        ("audio-vae-2.0", "audio_vae", None, ("audio_vae",)),
        ("audio-vae-2.3", "audio_vae", None, ("audio_vae",)),
        ("audio-vae-2.5", "audio_vae", None, ("audio_vae",)),
        ("gemma3-12b-text", "text_encoder", "2.0|2.3", ("gemma3_12b",)),
        ("gemma3-12b-text-comfy", "text_encoder", "2.0|2.3", ("gemma3_12b",)),
        ("text-2.0", "connectors", "2.0", ("connectors", "text_projection")),
        ("text-2.3", "connectors", "2.3|2.5", ("connectors", "text_projection")),
        ("transformer-2.0-19b", "checkpoint", "2.0", ("transformer",)),
        ("transformer-2.3-22b", "checkpoint", "2.3", ("transformer",)),
        ("transformer-2.5-22b", "checkpoint", "2.5", ("transformer",)),
        ("upsampler-spatial-x2-2.0", "latent_upsampler", None, ("spatial_x2",)),
        ("upsampler-spatial-x2-2.3", "latent_upsampler", None, ("spatial_x2",)),
        ("upsampler-spatial-x1.5-2.3", "latent_upsampler", None, ("spatial_x1.5",)),
        ("upsampler-temporal-x2", "latent_upsampler", None, ("temporal_x2",)),
        ("video-vae-2.0", "video_vae", "2.0", ("video_vae",)),
        ("video-vae-2.3", "video_vae", "2.3|2.5", ("video_vae",)),
        ("video-vae-2.5-conv", "video_vae", "2.3|2.5", ("video_vae",)),
        ("video-vae-2.5-diffusion", "video_vae", "2.5", ("video_vae_diffusion",)),
        ("vocoder-2.0", "audio_vae", "2.0", ("vocoder",)),
        ("vocoder-2.3", "audio_vae", "2.3|2.5", ("vocoder",)),
        ("vocoder-2.5", "audio_vae", "2.3|2.5", ("vocoder",)),
    ],
)
def test_full_size_names(name, kind, version, components):
    info = identify(header(manifest(name)))
    assert (info.kind, info.version, info.components) == (kind, version, components)


def test_packed_text_encoder_of_2_5():
    names = {k: v for k, v in manifest("text-2.5").items() if not k.startswith(P)}
    info = identify(header(names))
    assert (info.kind, info.version) == ("text_encoder", "2.5")
    assert info.components == ("text_projection", "gemma4_12b")


@pytest.mark.parametrize(
    ("path", "version", "quant"),
    [
        (TEXT / "hf_folder", "2.0|2.3", "none"),
        (TEXT / "comfy_single/tiny_gemma_comfy.safetensors", "2.0|2.3", "none"),
        (TEXT / "comfy_single/tiny_gemma_comfy_fp8_scaled.safetensors", "2.0|2.3", "fp8_scaled"),
        (TEXT / "comfy_single/tiny_gemma_comfy_fp4_mixed.safetensors", "2.0|2.3", "mixed"),
        (TEXT / "te_bundle_25/tiny_gemma4_with_proj.safetensors", "2.5", "none"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_text_encoders(path, version, quant):
    info = inspect(path)
    assert (info.kind, info.version, info.quant) == ("text_encoder", version, quant)


@pytest.mark.parametrize("width", [1152, 2560, 5376])
def test_other_gemmas_are_unknown(width):
    names = ("self_attn.q_norm", "pre_feedforward_layernorm", "input_layernorm")
    other = {f"model.layers.{i}.{name}.weight": [width] for i in range(62) for name in names}
    info = identify(header(other))
    assert (info.kind, info.prefix) == ("unknown", None)
    assert "expected" in info.notes[0]


def test_a_named_version_narrows_and_never_overrules():
    shapes = manifest("video-vae-2.3")
    assert identify(header(shapes, {"model_version": "2.5.0"})).version == "2.5"
    assert identify(header(shapes, {"model_version": "2.3.rc1"})).version == "2.3"
    info = identify(header(manifest("transformer-2.0-19b"), {"model_version": "2.3.0"}))
    assert info.version == "2.0"
    assert any("trusted" in note for note in info.notes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2.3.rc1", "2.3"),
        ("2.4-rc2", "2.3"),
        ("2.5.0", "2.5"),
        ("3", "2.5"),
        ("2", None),
        ("1.9", None),
        ("", None),
        (None, None),
        ("new", None),
        ("2.0", "2.0"),
    ],
)
def test_version_strings(text, expected):
    assert generation(text) == expected


@pytest.mark.parametrize(
    ("start", "rest"),
    [
        ("upsampler.0.weight", {(8, 5): ("spatial_x2", "temporal_x2"), (2, 5): ("temporal_x2",)}),
        ("upsampler.conv.weight", {(16, 4): ("spatial_x4",), (9, 4): ("spatial_x1.5",)}),
    ],
)
def test_rare_upsamplers(start, rest):
    for (factor, axes), components in rest.items():
        found = header(
            {
                "initial_conv.weight": [64, 8, 3, 3, 3],
                "post_upsample_res_blocks.0.conv2.bias": [64],
                start: [64 * factor, 64, *[3] * (axes - 2)],
            }
        )
        assert identify(found).components == components


def test_ambiguous_upsampler_is_decided_by_its_config():
    shapes = {
        "initial_conv.weight": [64, 8, 3, 3, 3],
        "post_upsample_res_blocks.0.conv2.bias": [64],
        "upsampler.conv.weight": [576, 64, 3, 3],
    }
    config = json.dumps({"spatial_scale": 0.75})
    assert identify(header(shapes, {"config": config})).components == ("spatial_x0.75",)


@cache
def two_blocks():
    """The 2.3 transformer with blocks 0 and 20, without the layer that the tests replace."""
    blocks = (f"{P}transformer_blocks.0.", f"{P}transformer_blocks.20.")
    return {
        key: shape
        for key, shape in manifest("transformer-2.3-22b").items()
        if not key.startswith(LAYER) and (key.startswith(blocks) or "transformer_blocks" not in key)
    }


def transformer(extra, metadata=None):
    return header(two_blocks() | extra, metadata)


QUANTISED = {
    "nvfp4": {
        "weight": ("U8", [4096, 2048]),
        "weight_scale": ("F8_E4M3", [4096, 256]),
        "weight_scale_2": ("F32", []),
    },
    "mxfp8": {"weight": ("F8_E4M3", [4096, 4096]), "weight_scale": ("U8", [4096, 128])},
    "fp8_scaled": {"weight": ("F8_E5M2", [4096, 4096]), "weight_scale": ("F32", [1])},
    "fp8_cast": {"weight": ("F8_E4M3", [4096, 4096])},
}


def layer(tensors):
    return {f"{LAYER}.{name}": value for name, value in tensors.items()}


@pytest.mark.parametrize("quant", QUANTISED)
def test_formats_by_tensors(quant):
    info = identify(transformer(layer(QUANTISED[quant])))
    assert info.quant == quant
    rest = identify(transformer({})).parameters["transformer"]
    assert info.parameters["transformer"] == rest + 4096 * 4096  # scales are no parameters


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"weight": ("I8", [4096, 4096]), "weight_scale": ("F32", [])}, "rotation is unknown"),
        ({"weight": ("U8", [4096, 2048])}, "no weight_scale"),
        ({**QUANTISED["nvfp4"], "weight_scale_2": ("F16", [])}, "stores weight_scale_2"),
        ({k: v for k, v in QUANTISED["nvfp4"].items() if k != "weight_scale"}, "no weight_scale"),
        ({**QUANTISED["nvfp4"], "weight_scale": ("F8_E4M3", [4096, 255])}, "weight_scale of shape"),
        ({**QUANTISED["fp8_scaled"], "weight_scale": ("F32", [2])}, "weight_scale of shape"),
        ({"weight": ("BF16", [4096, 4096]), "weight_scale": ("F32", [])}, "its weight is BF16"),
        ({"weight_scale": ("F32", [])}, "its weight is missing"),
        ({**QUANTISED["mxfp8"], "weight": ("F8_E4M3", [2, 2, 32])}, "rows and columns"),
    ],
)
def test_incomplete_layers_are_refused(tensors, reason):
    with pytest.raises(CheckpointError, match=reason):
        identify(transformer(layer(tensors)))


def test_a_lone_fp8_layer_without_scale_in_a_scaled_file_is_refused():
    lone = {f"{P}transformer_blocks.20.attn1.to_k.weight": ("F8_E4M3", [4096, 4096])}
    with pytest.raises(CheckpointError, match="no scale tensor"):
        identify(transformer(layer(QUANTISED["fp8_scaled"]) | lone))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"format": "int3"}, "unknown format"),
        ({"format": "fp8_cast"}, "unknown format"),
        ({"format": ["nvfp4"]}, "unknown format"),
        ({"format": "nvfp4"}, "stores weight as I8"),
        ({"format": "int8_tensorwise", "convrot": True}, "convrot_groupsize"),
        ({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 8}, "power of 4"),
        ({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": -4}, "1..65536"),
        (["int8"], "no JSON object"),
    ],
)
def test_records_are_checked(record, reason):
    metadata = {"_quantization_metadata": json.dumps({"layers": {LAYER: record}})}
    tensors = {"weight": ("I8", [4096, 4096]), "weight_scale": ("F32", [4096, 1])}
    with pytest.raises(CheckpointError, match=reason):
        identify(transformer(layer(tensors), metadata))


def test_records_of_absent_layers_and_empty_tables_do_not_matter():
    metadata = {"_quantization_metadata": json.dumps({"layers": {"gone": {"format": "nvfp4"}}})}
    assert identify(transformer({}, metadata)).quant == "none"


def test_layers_of_the_quantised_fixtures():
    found = layer_formats(open_headers(checkpoint("quant_layers.safetensors"))[0])
    names = {path.split("transformer_blocks.1.")[1]: layer for path, layer in found.items()}
    assert {path: layer.name for path, layer in names.items()} == {
        "attn1.to_q": "float8_e4m3fn",
        "attn1.to_k": "float8_e5m2",
        "attn1.to_v": "nvfp4",
        "attn2.to_q": "mxfp8",
        "attn2.to_k": "int8_tensorwise",
        "attn2.to_v": "int8_tensorwise",
        "audio_ff.net.0.proj": "int8_tensorwise",
        "ff.net.0.proj": "int8_tensorwise",
        "ff.net.2": "asym_w4a8_int8",
    }
    assert names["attn1.to_k"].full_precision
    assert names["audio_ff.net.0.proj"].convrot_group == 64
    assert (names["ff.net.2"].group, names["ff.net.2"].convrot_group) == (16, 256)
    by_metadata = layer_formats(open_headers(checkpoint("quant_layers_metadata.safetensors"))[0])
    assert by_metadata == {path: found[path] for path in by_metadata}
    legacy = layer_formats(open_headers(checkpoint("quant_legacy_scaled.safetensors"))[0])
    assert {layer.name for layer in legacy.values()} == {"float8_e4m3fn"}
    assert not any(layer.full_precision for layer in legacy.values())


def test_legacy_marker_of_two_elements_means_full_precision():
    extra = {f"{LAYER}.weight": ("F8_E4M3", [4096, 4096]), f"{LAYER}.scale_weight": ("F32", [])}
    marker = {f"{P}scaled_fp8": ("F8_E4M3", [2])}
    assert layer_formats(transformer(extra | marker))[LAYER].full_precision


@pytest.mark.parametrize("stem", ["ltx2_20_tiny.safetensors", "ltx2_23_tiny.safetensors"])
def test_files_of_one_version_fit(stem, tmp_path):
    tensors, metadata = read(checkpoint(stem))
    parts = {"a": (P,), "b": ("vae.",), "c": ("audio_vae.", "vocoder."), "d": ("text_emb",)}
    paths = [
        write(tmp_path / f"{name}.safetensors", starting(tensors, *starts), metadata)
        for name, starts in parts.items()
    ]
    assert check_fit(*map(inspect, paths)) == ()
    whole, together = inspect(checkpoint(stem)), inspect(paths)
    assert together.components == whole.components
    assert together.parameters == whole.parameters
    assert together.version == whole.version


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ("ltx2_20_tiny.safetensors", "ltx2_23_tiny.safetensors", "2.0.*2.3"),
        ("ltx2_23_tiny.safetensors", TEXT / "hf_folder", "hidden states"),
    ],
)
def test_files_that_do_not_fit(one, other, reason):
    with pytest.raises(MismatchError, match=reason):
        check_fit(inspect(checkpoint(one)), inspect(checkpoint(other)))


def test_the_gemma_of_2_5_is_checked_by_name():
    source = {"gemma_version": "gemma4-12b-ltx-v1", "ltx_version": "2.5.0"}
    model = {"gemma_source_checkpoint": json.dumps(source), "model_version": "2.5.0"}
    transformer = identify(header(manifest("transformer-2.5-22b"), model))
    packed = {k: v for k, v in manifest("text-2.5").items() if not k.startswith(P)}

    def encoder(version):
        return identify(header(packed, {"gemma_config": json.dumps({"gemma_version": version})}))

    assert check_fit(transformer, encoder("gemma4-12b-ltx-v1")) == ()
    with pytest.raises(MismatchError, match="trained with"):
        check_fit(transformer, encoder("gemma4-12b"))
    with pytest.raises(MismatchError, match="version"):
        check_fit(transformer, identify(header(manifest("gemma3-12b-text"))))
    silent = identify(header(manifest("transformer-2.5-22b"), {"model_version": "2.5.0"}))
    with pytest.raises(MismatchError, match="gemma_source_checkpoint"):
        check_fit(silent, encoder("gemma4-12b-ltx-v1"))
    bare = identify(header(manifest("transformer-2.5-22b")))
    for model, text in ((silent, identify(header(packed))), (bare, encoder("gemma4-12b-ltx-v1"))):
        (note,) = check_fit(model, text)
        assert "not stated" in note


@pytest.mark.parametrize(
    ("key", "component"),
    [
        ("reference_strength", "ic_lora"),
        ("use_hdr_transform", "ic_lora"),
        ("lora_rank", "lora"),
    ],
)
def test_metadata_of_a_reference_makes_an_ic_lora(key, component):
    pair = {f"diffusion_model.proj_out.lora_{side}.weight": [4, 4] for side in "AB"}
    assert identify(header(pair, {key: "2"})).components == (component,)


@pytest.mark.parametrize("prefix", [P, "diffusion_model.", ""])
@pytest.mark.parametrize(
    ("width", "version"), [(3840, "2.0"), (4096, "2.3|2.5"), (2048, "2.3|2.5")]
)
def test_any_tensor_of_a_connector_shows_its_width(prefix, width, version):
    block = f"{prefix}video_embeddings_connector.transformer_1d_blocks.0.attn1."
    for name, shape in (("to_q.weight", [width, width]), ("q_norm.weight", [width])):
        info = identify(header({block + name: shape}))
        assert (info.kind, info.version, info.prefix) == ("connectors", version, prefix)


def test_upsamplers_tell_their_version_by_their_resampler():
    vae = identify(header(manifest("video-vae-2.0")))
    assert check_fit(identify(header(manifest("upsampler-spatial-x2-2.0"))), vae) == ()
    with pytest.raises(MismatchError):
        check_fit(identify(header(manifest("upsampler-spatial-x2-2.3"))), vae)
    (note,) = check_fit(identify(header(manifest("upsampler-temporal-x2"))), vae)
    assert "nothing tells" in note


@pytest.mark.parametrize(
    "config",
    ["[]", "{", '{"transformer": []}', '{"transformer": {"num_layers": 1e9}}',
     '{"transformer": {"norm_eps": NaN}}', '{"transformer": {"in_channels": 99999999}}',
     '{"transformer": ' + "[" * 20 + "]" * 20 + "}", '"' + "x" * 1_000_001 + '"',
     '{"transformer": {"num_layers": ' + "9" * 400 + "}}"],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_absurd_configs_are_refused(config):
    found = header(manifest("transformer-2.0-19b"), {"config": config})
    with pytest.raises(CheckpointError):
        component_section(identify(found), found, "transformer")


def test_shapes_beat_config_beats_preset(caplog):
    stated = {"num_layers": 3, "cross_attention_adaln": False, "norm_eps": 1e-5}
    found = header(manifest("transformer-2.3-22b"), {"config": json.dumps({"transformer": stated})})
    section = component_section(identify(found), found, "transformer")
    assert section["num_layers"] == 48
    assert section["cross_attention_adaln"] is True
    assert section["norm_eps"] == 1e-5
    assert section["rope_type"] == "split"
    assert "num_layers = '3', the tensors show '48'" in caplog.text


def test_files_without_config_say_so(caplog):
    found = header(manifest("video-vae-2.0"))
    info = identify(found)
    assert any("no config" in note for note in info.notes)
    component_section(info, found, "video_decoder")
    assert "no config" in caplog.text


SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 6, 8, 9, 64, 10**6]), max_size=5)
NAMES = [
    *sorted({key for case in CASES for key in case["tensors"]}),
    "vae.encoder.down_blocks.99999999999.res_blocks.0.conv1.conv.weight",
    "model.layers.99999.self_attn.q_norm.weight",
    "model.layers.5.pre_feedforward_layernorm.weight",
    "audio_vae.encoder.down.3.block.0.conv1.conv.weight",
    "vocoder.ups.0.weight",
    "latents_mean",
    "upsamplers.0.weight",
    "aggregate_embed.weight",
]


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), SIZES, max_size=12), st.booleans())
def test_any_names_and_shapes_give_an_answer_or_our_error(shapes, with_config):
    config = json.dumps({"transformer": {"num_attention_heads": 0}, "vae": {"encoder_blocks": 3}})
    found = header(shapes, {"config": config} if with_config else {})
    try:
        info = identify(found)
    except EngineError:
        return
    info.summary()
    for kind in SECTIONS:
        with suppress(EngineError):
            component_section(info, found, kind)


def test_a_sharded_set_is_one_file(tmp_path):
    tensors, metadata = read(checkpoint("ltx2_20_tiny_fp8.safetensors"))
    names = sorted(tensors)
    halves = [names[::2], names[1::2]]  # scales lie apart from their weights
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    paths = [
        write(tmp_path / file, {k: tensors[k] for k in half}, metadata)
        for file, half in zip(files, halves, strict=True)
    ]
    whole = inspect(checkpoint("ltx2_20_tiny_fp8.safetensors"))
    assert inspect(paths).parameters == whole.parameters
    assert inspect(tmp_path).quant == "fp8_scaled"
    index = tmp_path / "model.safetensors.index.json"
    table = {key: file for file, half in zip(files, halves, strict=True) for key in half}
    index.write_text(json.dumps({"weight_map": table}))
    assert inspect(index).parameters == whole.parameters
    for bad in ("../model.safetensors", "a/b.safetensors", "a\\b.safetensors", ".."):
        index.write_text(json.dumps({"weight_map": {"a": bad}}))
        with pytest.raises(CheckpointError, match="not a file of its folder"):
            inspect(tmp_path)
    index.write_text(json.dumps({"weight_map": {**table, "lost": files[0]}}))
    with pytest.raises(CheckpointError, match="lost"):
        inspect(tmp_path)


def test_nothing_to_identify(tmp_path):
    with pytest.raises(CheckpointError, match="no file"):
        inspect([])
    with pytest.raises(CheckpointError, match="holds no"):
        inspect(tmp_path)
    path = write(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    with pytest.raises(CheckpointError, match="named twice"):
        inspect([path, path])
