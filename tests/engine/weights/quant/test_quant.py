"""Quantised linears from real layouts: decoded values, strict loading, forward, side path."""

import pytest
import torch
import torch.nn.functional as F
from goldens import Case, golden
from torch import nn

from aiprod_engine.errors import CheckpointError
from aiprod_engine.weights.containers.mapped import MappedFile
from aiprod_engine.weights.containers.read import read_header
from aiprod_engine.weights.quant.dequantize import dequantize, rotate
from aiprod_engine.weights.quant.formats import LayerFormat, layer_formats
from aiprod_engine.weights.quant.linear import QuantizedLinear, convert

# Rotations by a 256-wide matmul: the recorded order of summation is that of another machine.
EXACT = {"float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8", "int8_tensorwise"}


def _tree(layers: dict[str, nn.Module]) -> nn.Module:
    """A module tree that has `layers` under their dotted names."""
    root = nn.Module()
    for name, layer in layers.items():
        parent = root
        *path, leaf = name.split(".")
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]
        parent.add_module(leaf, layer)
    return root


def _load(case: Case, expected: Case):
    """The linears of a fixture file, converted on the meta device and loaded strictly."""
    header = read_header(case.path)
    formats = layer_formats(header)
    stored = MappedFile(header)
    weights = {k.removesuffix(".weight"): v for k, v in expected.outputs.items()}
    with torch.device("meta"):
        model = _tree(
            {
                name: nn.Linear(w.shape[1], w.shape[0], bias=f"{name}.bias" in header.tensors)
                for name, w in weights.items()
            }
        )
    convert(model, formats)
    companions = {key for found in formats.values() for key in found.tensors.values()}
    leaves = (".weight", ".bias")
    tensors = {
        key: stored.tensor(key)
        for key in header.tensors
        if key in companions or key.endswith(leaves)
    }
    model.load_state_dict(tensors, assign=True, strict=True)
    return model, formats, weights


@pytest.mark.parametrize(
    "case", golden("checkpoints/quant_layers", "checkpoints/quant_legacy_scaled")
)
def test_every_layout_loads_and_decodes(case):
    expected = Case(f"{case.name}.expected")
    model, formats, weights = _load(case, expected)
    for name, weight in weights.items():
        layer = model.get_submodule(name)
        if name not in formats:
            assert type(layer) is nn.Linear
            expected.check(f"{name}.weight", layer.weight.float())
            continue
        decoded = layer.dequantized()
        assert layer.quant == formats[name].name
        expected.check(f"{name}.weight", decoded)
        if formats[name].name in EXACT and not formats[name].convrot_group:
            assert torch.equal(decoded, weight), name


@pytest.mark.parametrize(
    "case", golden("checkpoints/quant_layers.expected", "checkpoints/quant_legacy_scaled.expected")
)
def test_forward_rebuilds_the_weight_and_rounds_it_once(case):
    file = Case(case.name.removesuffix(".expected"))
    model, formats, weights = _load(file, case)
    for name in formats:
        layer, weight = model.get_submodule(name), weights[name]
        for dtype in (torch.bfloat16, torch.float16):
            assert torch.equal(layer.dequantized(dtype), layer.dequantized().to(dtype)), name
        for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2**-7)):
            x = torch.randn(2, 3, weight.shape[1], dtype=dtype)
            bias = None if layer.bias is None else layer.bias.to(dtype)
            y = layer(x)
            assert y.dtype == dtype
            torch.testing.assert_close(
                y, F.linear(x, weight.to(dtype), bias), rtol=bound, atol=bound
            )


@pytest.mark.parametrize("case", golden("checkpoints/quant_layers_metadata"))
def test_records_in_the_metadata_mean_the_same(case):
    """The attn1 subset of quant_layers, announced by `_quantization_metadata`."""
    header = read_header(case.path)
    stored, expected = MappedFile(header), Case("checkpoints/quant_layers.expected")
    formats = layer_formats(header)
    assert len(formats) == 3
    for name, layer in formats.items():
        tensors = {role: stored.tensor(key) for role, key in layer.tensors.items()}
        assert torch.equal(dequantize(layer, tensors), expected.outputs[f"{name}.weight"])


def test_pieces_of_rows_do_not_change_the_weight(monkeypatch):
    case = Case("checkpoints/quant_layers")
    header = read_header(case.path)
    stored = MappedFile(header)
    layers = [
        (layer, {role: stored.tensor(key) for role, key in layer.tensors.items()})
        for layer in layer_formats(header).values()
    ]
    layers.append((LayerFormat("gguf:Q8_0"), {"weight": torch.randint(0, 60, (9, 68)).byte()}))
    whole = [dequantize(layer, tensors) for layer, tensors in layers]
    monkeypatch.setattr("aiprod_engine.weights.quant.dequantize._PIECE", 200)
    for (layer, tensors), weight in zip(layers, whole, strict=True):
        assert torch.equal(dequantize(layer, tensors), weight)


def test_every_stored_tensor_matters():
    case = Case("checkpoints/quant_layers")
    header = read_header(case.path)
    stored = MappedFile(header)
    for layer in layer_formats(header).values():
        tensors = {role: stored.tensor(key) for role, key in layer.tensors.items()}
        before = dequantize(layer, tensors)
        for role in tensors.keys() - {"input_scale"}:  # read by the scaled matmul only
            changed = tensors[role].clone()
            raw = changed.view(-1) if changed.ndim == 0 else changed.flatten()[:1]
            raw.view(torch.uint8)[..., -1] ^= 2
            assert not torch.equal(dequantize(layer, {**tensors, role: changed}), before), role


def test_batch_of_two_is_two_of_one_and_runs_repeat():
    model, formats, _ = _load(
        Case("checkpoints/quant_layers"), Case("checkpoints/quant_layers.expected")
    )
    for name in formats:
        layer = model.get_submodule(name)
        x = torch.randn(2, 3, layer.in_features)
        torch.testing.assert_close(layer(x), torch.cat([layer(x[:1]), layer(x[1:])]))
        assert torch.equal(layer(x), layer(x))


def test_rotation_is_its_own_inverse():
    x = torch.randn(3, 512)
    for group in (1, 4, 16, 64, 256):
        torch.testing.assert_close(rotate(rotate(x, group), group), x)
    assert rotate(x, None) is x
    with pytest.raises(CheckpointError, match="power of 4"):
        rotate(x, 32)


def test_missing_unexpected_and_misshaped_tensors_raise():
    layer = LayerFormat(
        "float8_e4m3fn", tensors={"weight": "weight", "weight_scale": "weight_scale"}
    )
    state = {"weight": torch.zeros(3, 4).to(torch.float8_e4m3fn), "weight_scale": torch.ones(())}

    def load(tensors):
        linear = QuantizedLinear(nn.Linear(4, 3, bias=False, device="meta"), layer)
        linear.load_state_dict(tensors, assign=True)

    load(state)
    for broken, word in (
        ({"weight": state["weight"]}, "Missing"),
        ({**state, "weight_scale_2": torch.ones(())}, "Unexpected"),
        ({**state, "weight": state["weight"].t()}, "size mismatch"),
    ):
        with pytest.raises(RuntimeError, match=word):
            load(broken)


def test_only_known_formats_of_linears_are_converted():
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    with pytest.raises(CheckpointError, match="LayerNorm"):
        convert(model, {"0": LayerFormat("fp8_cast")})
    with pytest.raises(CheckpointError, match="not supported"):
        dequantize(LayerFormat("int3"), {"weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_gguf_rows_folded_by_the_writer(kind):
    """A matrix whose rows are no whole blocks is stored as one row of bytes."""
    with torch.device("meta"):
        linear = QuantizedLinear(nn.Linear(96 + 160, 4), LayerFormat(f"gguf:{kind}"))
        folded = QuantizedLinear(nn.Linear(16, 64), LayerFormat(f"gguf:{kind}"))
    for layer in (linear, folded):
        raw = torch.randint(0, 60, layer.weight.shape, dtype=torch.uint8)
        layer.load_state_dict({"weight": raw, "bias": torch.zeros(layer.out_features)}, assign=True)
        assert layer(torch.randn(2, layer.in_features)).shape == (2, layer.out_features)
