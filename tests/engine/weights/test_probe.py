"""Weights that no training can have produced are refused; whatever one can leave behind passes."""

from dataclasses import replace

import pytest
import torch
from checkpoint_files import P, checkpoint, read, write
from goldens import ROOT, golden
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aiprod_engine.errors import CheckpointError
from aiprod_engine.weights import load
from aiprod_engine.weights import probe as probes
from aiprod_engine.weights.containers.mapped import MappedFile
from aiprod_engine.weights.containers.read import read_header
from aiprod_engine.weights.probe import check_plausible
from aiprod_engine.weights.quant.formats import layer_formats
from aiprod_engine.weights.quant.linear import QuantizedLinear
from aiprod_engine.weights.recipe import Recipe

KINDS = (
    *("transformer", "text_connector", "video_encoder", "video_decoder"),
    *("audio_encoder", "audio_decoder", "vocoder"),
)
Q = "transformer_blocks.1.attn1.to_q"


@pytest.mark.parametrize("stem", ["ltx2_20_tiny", "ltx2_23_tiny"])
@pytest.mark.parametrize("kind", KINDS)
def test_complete_files_pass(stem, kind):
    check_plausible(load(kind, checkpoint(f"{stem}.safetensors")))


@pytest.mark.parametrize(
    "name", ["ltx2_20_tiny_fp8.safetensors", "ltx2_23_tiny_fp8.safetensors", "ltx2_23_tiny.gguf"]
)
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_quantised_files_pass(name, dtype):
    check_plausible(load("transformer", checkpoint(name), dtype=dtype))


@pytest.mark.parametrize("case", golden("checkpoints/ltx2_*_tiny_lora_*", "checkpoints/*_iclora"))
def test_adapted_models_pass(case):
    stem = case.path.name.split("_lora_")[0].split("_iclora")[0]
    file = checkpoint(f"{stem}.safetensors")
    check_plausible(load("transformer", file, loras=[(case.path, 1.0)]))


@pytest.mark.parametrize(
    "case", golden("text/gemma3_tiny_fp8_scaled", "text/gemma3_tiny_fp4_mixed")
)
def test_text_encoders_pass(case):
    check_plausible(load("text_encoder", ROOT / "text" / case.call["file"]))


@pytest.mark.parametrize("name", ["hf_folder", "te_bundle_25/tiny_gemma4_with_proj.safetensors"])
def test_text_folders_pass(name):
    check_plausible(load("text_encoder", ROOT / "text" / "files" / name))


def test_written_files_and_recipes_pass(models):
    for name in ("ltx-2-19b-dev", "ltx-2.3-22b-dev"):
        file = str(models / "checkpoints" / f"{name}.safetensors")
        for kind in KINDS:
            Recipe(kind, (file,)).load()
    Recipe("text_encoder", (str(models / "text_encoders/gemma_3_12B_it.safetensors"),)).load()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 300),
    st.integers(2, 300),
    st.sampled_from(["kaiming_uniform_", "xavier_normal_", "orthogonal_"]),
    st.floats(0.02, 10),
)
def test_initialisations_and_what_training_makes_of_them_pass(inputs, outputs, initialise, gain):
    linear = nn.Linear(inputs, outputs)
    getattr(nn.init, initialise)(linear.weight)
    with torch.no_grad():
        linear.weight.mul_(gain)
        linear.weight[0] = 0  # dead units
        linear.weight.view(-1)[-1] = 30.0  # and an outlier
        linear.bias.zero_()
    check_plausible(linear)


def test_a_zero_region_alone_is_no_fault():
    linear = nn.Linear(2048, 2048)
    with torch.no_grad():
        linear.weight[:2047] = 0  # all that the probe looks at first, but for the last row
        linear.weight[2047, :1500] = 0
    check_plausible(linear)


def _broken(weight: torch.Tensor, how: str) -> torch.Tensor:
    if how == "zeros":
        return torch.zeros_like(weight)
    if how == "constant":
        return torch.full_like(weight, 0.25)
    if how == "codes without their scale":
        return weight / weight.abs().max() * 448
    if how == "scale inverted":
        return weight / 0.0013
    if how == "not a number":
        return weight.clone().fill_(float("nan"))
    raw = torch.randint(0, 256, (weight.nbytes,), dtype=torch.uint8)
    return raw.view(weight.dtype).view(weight.shape)  # random bytes


FAULTS = {
    "zeros": "is zero everywhere",
    "constant": "standard deviation of 0,",
    "codes without their scale": "scale is missing",
    "scale inverted": "scale is missing",
    "not a number": "no finite numbers",
    "random bytes": "no finite numbers|deviation",
}


@settings(max_examples=30, deadline=None)
@given(st.integers(32, 400), st.integers(32, 400), st.sampled_from([*FAULTS]), st.integers(0, 99))
def test_broken_matrices_are_refused(inputs, outputs, how, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs, outputs), nn.Linear(outputs, inputs))
    model[1].weight.data = _broken(model[1].weight.data.bfloat16(), how)
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: '1\.weight' .*({FAULTS[how]})"):
        check_plausible(model, "x.safetensors")


@pytest.mark.parametrize("how", ["random bytes", "not a number"])
def test_broken_vectors_are_refused(how):
    norm = nn.LayerNorm(512)
    norm.weight.data = _broken(norm.weight.data.bfloat16(), how)
    with pytest.raises(CheckpointError, match=r"'weight' (holds values|reaches)"):
        check_plausible(norm)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d])
def test_convolutions(kind):
    layer = kind(16, 24, 3)
    check_plausible(layer)
    layer.weight.data.zero_()
    with pytest.raises(CheckpointError, match="zero everywhere"):
        check_plausible(layer)


def _without_scales(stem: str, tmp_path) -> object:
    """The fp8 file as one that lost all scales and records: a plain cast file by its header."""
    tensors, metadata = read(checkpoint(f"{stem}_fp8.safetensors"))
    metadata.pop("_quantization_metadata", None)
    lost = ("weight_scale", "input_scale", "comfy_quant")
    kept = {k: t for k, t in tensors.items() if not k.endswith(lost)}
    return write(tmp_path / "lost.safetensors", kept, metadata)


@pytest.mark.parametrize("stem", ["ltx2_20_tiny", "ltx2_23_tiny"])
def test_fp8_without_its_scales_is_refused(stem, tmp_path):
    file = _without_scales(stem, tmp_path)
    load("transformer", file)  # nothing in the header tells
    with pytest.raises(CheckpointError, match=r"^lost\.safetensors: .* scale is missing"):
        Recipe("transformer", (str(file),)).load()
    with pytest.raises(CheckpointError, match="scale is missing"):
        Recipe("transformer", (str(file),), torch.bfloat16).load()


def test_a_refused_file_loads_with_the_switch_that_the_sentence_names(tmp_path):
    file = _without_scales("ltx2_23_tiny", tmp_path)
    recipe = Recipe("transformer", (str(file),))
    with pytest.raises(CheckpointError, match=r"switch check_values off where it is loaded$"):
        recipe.load()
    as_it_is = replace(recipe, check_values=False)
    assert as_it_is.network != recipe.network  # nobody gets the unchecked one who wants a check
    assert as_it_is.load().state_dict().keys() == load("transformer", file).state_dict().keys()


def test_one_dropped_scale_is_refused_by_the_header(tmp_path):
    tensors, metadata = read(checkpoint("ltx2_23_tiny_fp8.safetensors"))
    del tensors[f"{P}{Q}.weight_scale"]
    file = write(tmp_path / "dropped.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match="weight_scale"):
        load("transformer", file)


@pytest.mark.parametrize("factor", [0.0, 1e4, float("nan")])
def test_a_wrong_scale_is_refused(tmp_path, factor):
    tensors, metadata = read(checkpoint("ltx2_23_tiny_fp8.safetensors"))
    tensors[f"{P}{Q}.weight_scale"] *= factor
    file = write(tmp_path / "scale.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match=rf"'{Q}\.weight'"):
        Recipe("transformer", (str(file),)).load()


def _stored_layers(case):
    """(name, layer) of every quantised layer of a fixture, as the loader builds it."""
    header = read_header(case.path)
    stored = MappedFile(header)
    for name, found in layer_formats(header).items():
        tensors = {k.rpartition(".")[2]: stored.tensor(k) for k in found.tensors.values()}
        rows, columns = tensors["weight"].shape
        columns *= 2 if found.name in ("nvfp4", "asym_w4a8_int8") else 1
        layer = QuantizedLinear(nn.Linear(columns, rows, bias=False, device="meta"), found)
        layer.load_state_dict(tensors, assign=True)
        yield name, layer


@pytest.mark.parametrize(
    "case",
    golden(
        "checkpoints/quant_layers",
        "checkpoints/quant_layers_metadata",
        "checkpoints/quant_legacy_scaled",
    ),
)
def test_every_quantised_layout_passes_and_shows_its_values(case):
    for name, layer in _stored_layers(case):
        check_plausible(layer, name)
        some, whole = probes._some_decoded(layer), layer.dequantized()
        row = layer.out_features // 2 // 128 * 128
        torch.testing.assert_close(some, whole[row, : len(some)])
        role = next(r for r, t in layer.packed().items() if "scale" in r or "s_channel" in r)
        if layer.packed()[role].is_floating_point():  # mxfp8 stores exponents
            wrong = torch.full_like(layer.packed()[role], float("nan"))
            layer.register_buffer(layer.names[role], wrong)
            with pytest.raises(CheckpointError, match="no finite numbers"):
                check_plausible(layer, name)


@pytest.mark.parametrize("case", golden("checkpoints/quant_layers"))
def test_a_transposed_scale_is_refused(case):
    tried = set()
    for name, layer in _stored_layers(case):
        scale = layer.packed().get("weight_scale")
        if scale is None or scale.ndim != 2 or scale.shape[0] == scale.shape[1]:
            continue
        tried.add(layer.quant)
        raw = scale.view(torch.uint8) if scale.element_size() == 1 else scale
        layer.register_buffer(layer.names["weight_scale"], raw.T.contiguous().view(scale.dtype))
        with pytest.raises(CheckpointError, match="stored transposed"):
            check_plausible(layer, name)
    assert {"nvfp4", "int8_tensorwise"} <= tried


def test_the_probe_reads_a_bounded_number_of_values(monkeypatch):
    seen = []
    monkeypatch.setattr(probes, "_verdict", lambda probe, *_: seen.append(probe.values.numel()))
    check_plausible(load("transformer", checkpoint("ltx2_23_tiny.gguf")))
    wide = nn.Linear(8192, 4096, bias=False, device="meta").to_empty(device="cpu")
    check_plausible(wide)
    assert max(seen) <= 1024
