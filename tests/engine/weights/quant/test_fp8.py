"""fp8 casts, per-tensor scaling, the storage option, adapters fused into fp8, scaled matmul."""

import gzip
import json

import pytest
import torch
import torch.nn.functional as F
from goldens import ROOT, golden
from torch import nn

from aiprod_engine.weights.lora import adapters
from aiprod_engine.weights.quant import fp8
from aiprod_engine.weights.quant.dequantize import dequantize
from aiprod_engine.weights.quant.formats import LayerFormat
from aiprod_engine.weights.quant.linear import QuantizedLinear, convert
from aiprod_engine.weights.quant.rounding import layer_seed

CAST, SCALED = LayerFormat("fp8_cast"), LayerFormat("float8_e4m3fn")
STATIC = {"weight": "l.weight", "weight_scale": "l.weight_scale", "input_scale": "l.input_scale"}


@pytest.mark.parametrize("case", golden("checkpoints/fp8_cast"))
@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_casts_clamp_and_decode_exactly(case, name):
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[name]
    x, out = case.inputs["x"], case.outputs
    clamped = fp8.cast(x, dtype)
    assert torch.equal(clamped.view(torch.uint8), out[f"{name}.clamped_bytes"])
    torch.testing.assert_close(
        clamped.float(), out[f"{name}.clamped"], rtol=0, atol=0, equal_nan=True
    )
    # The rule that makes clamping necessary: torch's plain cast leaves the finite range.
    assert torch.equal(x.to(dtype).view(torch.uint8), out[f"{name}.cast_bytes"])
    torch.testing.assert_close(
        x.to(dtype).float(), out[f"{name}.cast"], rtol=0, atol=0, equal_nan=True
    )
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype)
    decoded = dequantize(CAST, {"weight": codes})
    torch.testing.assert_close(decoded, out[f"{name}.decode_table"], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", golden("checkpoints/fp8_scaled"))
def test_scaled_quantisation_and_the_reference_fusion(case):
    """Bit-equal to the reference; its adapter delta is rounded to bf16 before it is added."""
    weight, out = case.inputs["weight"], case.outputs
    q, scale = fp8.quantize(weight)
    assert torch.equal(q.view(torch.uint8), out["q_bytes"])
    case.check("weight_scale", scale)
    decoded = dequantize(SCALED, {"weight": q, "weight_scale": scale})
    assert torch.equal(decoded, out["dequant"])
    case.check("linear", F.linear(case.inputs["x"], decoded))
    strength = case.call["lora_strength"]
    delta = (strength * case.inputs["lora.B"] @ case.inputs["lora.A"]).bfloat16().float()
    fused = fp8.requantize(SCALED, q.dtype, decoded + delta, None)
    assert torch.equal(fused["weight"].view(torch.uint8), out["fused_q_bytes"])
    case.check("fused_scale", fused["weight_scale"])
    case.check("fused_dequant", dequantize(SCALED, fused))


@pytest.mark.parametrize("case", golden("checkpoints/fp8_scaled"))
def test_our_fusion_into_scaled_fp8_keeps_the_update(case):
    q, scale = fp8.quantize(case.inputs["weight"])
    base = dequantize(SCALED, {"weight": q, "weight_scale": scale})
    adapter = adapters.LowRank(case.inputs["lora.A"], case.inputs["lora.B"])
    target = adapters.fuse(base, [(adapter, case.call["lora_strength"])])
    fused = fp8.requantize(SCALED, q.dtype, target, layer_seed("layer", "recipe"))
    again = fp8.requantize(SCALED, q.dtype, target, layer_seed("layer", "recipe"))
    assert torch.equal(fused["weight"].view(torch.uint8), again["weight"].view(torch.uint8))
    # One step is at most 1/8 of the value; below the normals (2^-6 of the scale) it is 2^-9 of it.
    values = dequantize(SCALED, fused)
    torch.testing.assert_close(values, target, rtol=0.125, atol=float(fused["weight_scale"]) / 512)
    assert (
        abs(((values - base) * (target - base)).sum() / (target - base).square().sum() - 1) < 0.05
    )


@pytest.mark.parametrize("case", golden("checkpoints/fp8_cast_fuse"))
def test_fusion_into_cast_fp8(case):
    stored = case.inputs["weight_bytes"].view(torch.float8_e4m3fn)
    base = dequantize(CAST, {"weight": stored})
    adapter = adapters.LowRank(case.inputs["lora.A"], case.inputs["lora.B"])
    target = adapters.fuse(base, [(adapter, case.call["strength"])])
    torch.testing.assert_close(target, case.outputs["exact"], rtol=1e-6, atol=1e-6)
    nearest = fp8.requantize(CAST, stored.dtype, target, None)["weight"].view(torch.uint8)
    difference = (nearest.int() - case.outputs["nearest_bytes"].int()).abs()
    assert difference.max() <= 1
    assert (difference == 0).float().mean() >= 0.995
    drawn = fp8.requantize(CAST, stored.dtype, target, layer_seed("k"))["weight"].float()
    torch.testing.assert_close(drawn, target, rtol=0.125, atol=2**-9)
    # The reference on CPU: bf16 sum, plain cast.
    factors = (case.inputs[f"lora.{name}"].bfloat16() for name in ("B", "A"))
    reference = (base.bfloat16() + torch.matmul(*factors)).to(stored.dtype)
    assert torch.equal(reference.view(torch.uint8), case.outputs["ltx_core_cpu_bytes"])
    assert torch.equal(reference.float(), case.outputs["ltx_core_cpu"])


@pytest.mark.parametrize("case", golden("transformer/fp8_per_tensor_quant"))
def test_per_tensor_quantiser(case):
    (weight,) = case.weights.values()
    q, scale = fp8.quantize(weight)
    case.check("weight_q", q.float())
    case.check("weight_scale", scale.reshape(1))
    for shape in ((), (1,)):  # files write the scale either way
        tensors = {"weight": q, "weight_scale": scale.reshape(shape)}
        case.check("weight_dequant", dequantize(SCALED, tensors))


@pytest.mark.parametrize("case", golden("transformer/fp8_cast_linear"))
def test_cast_linear_upcasts_weight_and_bias(case):
    """The reference stores the bias in fp8 too; files like that must run."""
    name, tensors = "transformer_blocks.0.ff.net.0.proj", case.group("w.model.diffusion_model.")
    weight, bias = (fp8.cast(tensors[f"{name}.{leaf}"]) for leaf in ("weight", "bias"))
    linear = QuantizedLinear(nn.Linear(40, 160, device="meta"), fp8.storage_formats([name])[name])
    linear.load_state_dict({"weight": weight, "bias": bias}, assign=True)
    case.check("weight_upcast", linear.dequantized())
    case.check("bias_upcast", linear.bias.float())
    case.check("y", linear(case.inputs["x"]))


def test_storage_targets_are_those_of_the_authors():
    table = json.loads((ROOT / "checkpoints/key_ops.json").read_text())["fp8_cast_targets"]
    for key, dtype in table:
        module = key.rpartition(".")[0]
        assert fp8.is_storage_target(module) == (dtype == "float8_e4m3fn"), key


@pytest.mark.parametrize("name", ["2.0-19b", "2.3-22b", "2.5-22b"])
def test_storage_covers_28_linears_of_each_published_block(name):
    path = ROOT.parent / f"manifests/transformer-{name}.json.gz"
    keys = json.loads(gzip.decompress(path.read_bytes()))
    modules = {key.removeprefix("model.diffusion_model.").rpartition(".")[0] for key in keys}
    assert len(fp8.storage_formats(modules)) == 28 * 48


def test_all_zero_weights_have_a_scale():
    q, scale = fp8.quantize(torch.zeros(4, 4))
    assert torch.isfinite(scale)
    assert q.float().abs().sum() == 0


def test_only_fp8_is_requantised():
    with pytest.raises(ValueError, match="side path"):
        fp8.requantize(LayerFormat("nvfp4"), torch.uint8, torch.zeros(2, 2), None)


def _static_layer(**options):
    layer = LayerFormat("float8_e4m3fn", tensors=STATIC, **options)
    linear = QuantizedLinear(nn.Linear(32, 48, device="meta"), layer, scaled_matmul=True)
    weight, scale = fp8.quantize(torch.randn(48, 32))
    bias = torch.randn(48, dtype=torch.bfloat16)
    state = {"weight": weight, "weight_scale": scale, "input_scale": torch.tensor([0.01])}
    linear.load_state_dict({**state, "bias": bias}, assign=True)
    return linear


def test_scaled_matmul_clamps_and_agrees_with_dequantised():
    """CPU torch has the kernel; the device check keeps it to GPUs in `forward`."""
    linear, x = _static_layer(), torch.randn(2, 5, 32, dtype=torch.bfloat16)
    x[0, 0, 0] = 1e4  # beyond 448 * input_scale: NaN without the clamp
    t = linear.packed()
    y = fp8.scaled_linear(x, t["weight"], t["weight_scale"], t["input_scale"], linear.bias)
    q = (x.float() / t["input_scale"]).clamp(-448, 448).to(torch.float8_e4m3fn).float()
    expected = F.linear(q * t["input_scale"], linear.dequantized(), linear.bias.float())
    assert y.shape == (2, 5, 48)
    # bf16 result: half a step is 2^-9 of the value, once for the product and once for the bias.
    torch.testing.assert_close(y.float(), expected, rtol=2**-7, atol=2**-6)


def test_rows_are_cast_in_parts(monkeypatch):
    linear, x = _static_layer(), torch.randn(2, 5, 32, dtype=torch.bfloat16)
    t = linear.packed()
    tensors = (t["weight"], t["weight_scale"], t["input_scale"], linear.bias)
    whole, sizes, cast = fp8.scaled_linear(x, *tensors), [], fp8.cast
    monkeypatch.setattr(fp8, "_ROWS", 4)
    monkeypatch.setattr(fp8, "cast", lambda x, dtype: sizes.append(len(x)) or cast(x, dtype))
    assert torch.equal(fp8.scaled_linear(x, *tensors), whole)
    assert sizes == [4, 4, 2]


def test_amd_devices_are_not_taken_for_new_nvidia_ones(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (11, 0))
    assert fp8.has_scaled_matmul(torch.device("cuda"))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not fp8.has_scaled_matmul(torch.device("cuda"))


def test_scaled_matmul_is_off_without_scale_or_where_the_record_forbids_it():
    assert _static_layer().scaled_matmul
    assert not _static_layer(full_precision=True).scaled_matmul
    model = nn.Sequential(nn.Linear(4, 4))
    convert(model, {"0": LayerFormat("float8_e4m3fn", tensors={"weight": "0.weight"})}, True)
    assert not model[0].scaled_matmul
    assert not fp8.has_scaled_matmul(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_forward_uses_the_scaled_matmul_on_the_device():
    linear = _static_layer().cuda()
    x = torch.randn(5, 32, dtype=torch.bfloat16, device="cuda") * 0.1
    expected = F.linear(x.float(), linear.dequantized(), linear.bias.float())
    error = (linear(x).float() - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()
    assert error < 0.05  # e4m3 activations: 2.6 % relative rms
