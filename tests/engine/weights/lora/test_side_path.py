"""Adapters beside the weight: equal to the fused weight, swapped without reading the base."""

import pytest
import torch
import torch.nn.functional as F
from goldens import ROOT, Case
from safetensors.torch import save_file
from torch import nn

from aiprod_engine.errors import MismatchError
from aiprod_engine.weights.containers.mapped import MappedFile
from aiprod_engine.weights.containers.read import read_header
from aiprod_engine.weights.lora.side_path import AdaptedLinear, attach
from aiprod_engine.weights.lora.stack import LoraSet, load_loras
from aiprod_engine.weights.quant import fp8
from aiprod_engine.weights.quant.formats import layer_formats
from aiprod_engine.weights.quant.linear import QuantizedLinear, convert

Q = "transformer_blocks.0.attn1.to_q"


def _model(dtype=torch.float32, quantised=False):
    """A model with one adapted linear and one that no adapter targets, filled with weights."""
    tensors = {
        f"{Q}.weight": torch.randn(32, 32).to(dtype),
        f"{Q}.bias": torch.randn(32).to(dtype),
        "proj_out.weight": torch.randn(8, 32).to(dtype),
    }
    with torch.device("meta"):
        model = nn.Module()
        node = model
        for part in Q.split(".")[:-1]:
            node.add_module(part, nn.Module())
            node = node.get_submodule(part)
        node.to_q = nn.Linear(32, 32)
        model.proj_out = nn.Linear(32, 8, bias=False)
    if quantised:
        convert(model, fp8.storage_formats([Q]))
        tensors[f"{Q}.weight"] = fp8.cast(tensors[f"{Q}.weight"])
    model.load_state_dict(tensors, assign=True)
    return model


def _loras(tmp_path, *strengths, kind="pair"):
    files = []
    for index, strength in enumerate(strengths):
        if kind == "lokr":
            tensors = {f"{Q}.lokr_w1": torch.randn(4, 8), f"{Q}.lokr_w2": torch.randn(8, 4)}
        else:
            rank = 2 + index
            tensors = {
                f"{Q}.lora_A.weight": torch.randn(rank, 32),
                f"{Q}.lora_B.weight": torch.randn(32, rank),
                f"{Q}.alpha": torch.tensor(1.0),
            }
        if kind == "dora":
            tensors[f"{Q}.dora_scale"] = torch.rand(32, 1)
        path = tmp_path / f"{kind}{index}.safetensors"
        save_file(tensors, path)
        files.append((path, strength))
    return load_loras(files, {f"{Q}.weight": (32, 32), f"{Q}.bias": (32,)})


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("kind", ["pair", "lokr"])
def test_side_path_equals_the_fused_weight(tmp_path, quantised, kind):
    model, loras = _model(quantised=quantised), _loras(tmp_path, 0.8, -0.3, kind=kind)
    linear = model.get_submodule(Q)
    base = linear.dequantized() if quantised else linear.weight
    x = torch.randn(2, 5, 32)
    expected = F.linear(x, loras.fuse(f"{Q}.weight", base), linear.bias)
    attach(model, loras, torch.float32)
    torch.testing.assert_close(model.get_submodule(Q)(x), expected, rtol=1e-4, atol=1e-4)
    assert model.get_submodule(Q).adapter_down.shape[0] == (5 if kind == "pair" else 32)


def test_attaching_keeps_keys_weights_and_other_modules(tmp_path):
    model, loras = _model(), _loras(tmp_path, 1.0)
    before, x = dict(model.state_dict()), torch.randn(3, 32)
    plain = model.get_submodule(Q)(x)
    attach(model, loras, torch.float32)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(after[key].data_ptr() == before[key].data_ptr() for key in before)
    assert isinstance(model.get_submodule(Q), AdaptedLinear)
    assert type(model.proj_out) is nn.Linear
    assert not torch.equal(model.get_submodule(Q)(x), plain)
    attach(model, LoraSet({}), torch.float32)  # none again
    assert torch.equal(model.get_submodule(Q)(x), plain)


def test_attach_only_where_asked(tmp_path):
    model, loras = _model(quantised=True), _loras(tmp_path, 1.0)
    attach(model, loras, torch.float32, modules=())
    assert model.get_submodule(Q).adapter_down is None
    attach(model, loras, torch.float32, modules=[Q, "proj_out"])
    assert model.get_submodule(Q).adapter_down is not None
    assert type(model.proj_out) is nn.Linear


def test_new_strength_is_a_new_branch_on_the_same_weight(tmp_path):
    model, x = _model(quantised=True), torch.randn(3, 32)
    linear = model.get_submodule(Q)
    plain, address = linear(x), linear.weight.data_ptr()
    deltas = []
    for strength in (1.0, 2.0):
        torch.manual_seed(5)
        attach(model, _loras(tmp_path, strength), torch.float32)
        deltas.append(linear(x) - plain)
    torch.testing.assert_close(deltas[1], 2 * deltas[0], rtol=1e-4, atol=1e-4)
    assert linear.weight.data_ptr() == address


def test_bf16_branch(tmp_path):
    model, loras = _model(torch.bfloat16, quantised=True), _loras(tmp_path, 0.5, 1.0)
    linear, x = model.get_submodule(Q), torch.randn(4, 32, dtype=torch.bfloat16)
    fused = loras.fuse(f"{Q}.weight", linear.dequantized())
    expected = F.linear(x.float(), fused, linear.bias.float())
    attach(model, loras, torch.bfloat16)
    assert linear.adapter_up.dtype == torch.bfloat16
    # Three bf16 roundings on sums of size about 20.
    torch.testing.assert_close(linear(x).float(), expected, rtol=2**-6, atol=0.2)


def test_dora_needs_the_weight_and_targets_must_be_linear(tmp_path):
    dora = _loras(tmp_path, 1.0, kind="dora")
    with pytest.raises(MismatchError, match="DoRA"):
        attach(_model(quantised=True), dora, torch.float32)
    with pytest.raises(MismatchError, match=f"{Q}: a DoRA"):
        dora.split([Q, "proj_out"])
    fused, beside = dora.split(["proj_out"])
    assert fused.modules == {Q}
    assert not beside.keys
    model = _model()
    model.get_submodule(Q.rpartition(".")[0]).to_q = nn.LayerNorm(32)
    with pytest.raises(MismatchError, match="no linear layer"):
        attach(model, _loras(tmp_path, 1.0), torch.float32)


def test_side_path_over_a_tiny_checkpoint_in_fp8():
    """One real-format LoRA over the quantised linears of the fp8 file, layer by layer."""
    header = read_header(Case("checkpoints/ltx2_23_tiny_fp8").path)
    stored, prefix = MappedFile(header), "model.diffusion_model."
    formats = layer_formats(header)
    shapes = {
        key.removeprefix(prefix): header.tensors[key].shape
        for key in header.tensors
        if key.startswith(prefix) and "connector" not in key and not key.endswith("_scale")
    }
    path = ROOT / "checkpoints/ltx2_23_tiny_lora_distilled_bf16.safetensors"
    loras = load_loras([(path, 0.7)], shapes)
    for name in list(formats)[::7]:
        rows, columns = header.tensors[f"{name}.weight"].shape
        layer = QuantizedLinear(nn.Linear(columns, rows, bias=False, device="meta"), formats[name])
        tensors = {
            key.rpartition(".")[2]: stored.tensor(key) for key in formats[name].tensors.values()
        }
        layer.load_state_dict(tensors, assign=True)
        down, up = loras.low_rank(name.removeprefix(prefix))
        layer.set_adapter(down, up)
        fused = loras.fuse(f"{name.removeprefix(prefix)}.weight", layer.dequantized())
        x = torch.randn(3, columns)
        torch.testing.assert_close(layer(x), F.linear(x, fused), rtol=1e-4, atol=1e-5)
