"""Whole networks from quantised files and with adapters, through the loader."""

import pytest
import torch
from goldens import ROOT, Case, golden
from torch import nn

from aiprod_engine.errors import MismatchError
from aiprod_engine.types import Modality
from aiprod_engine.weights import load, load_tokenizer
from aiprod_engine.weights.lora.side_path import replace_module
from aiprod_engine.weights.quant.linear import QuantizedLinear, store_in_fp8

STYLES = (*("lightricks", "comfy_alpha", "kohya", "diffusers", "peft", "bare_default", "ab_alpha"),)
VARIANTS = golden("checkpoints/ltx2_*.variants")


def _path(name: str):
    return ROOT / f"checkpoints/{name}"


def _outputs(model, case):
    """Velocities of the transformer for the inputs of the checkpoint's expected outputs."""
    inputs = Case(f"checkpoints/{case.call['inputs'].removesuffix('.safetensors')}").inputs
    dtype = model.patchify_proj.weight.dtype

    def side(name):
        own = {k.rpartition(".")[2]: v for k, v in inputs.items() if f"transformer.{name}." in k}
        return Modality(
            own["latent"].to(dtype),
            own["sigma"],
            own["timesteps"],
            own["positions"],
            own["context"].to(dtype),
        )

    with torch.no_grad():
        return dict(zip(("video", "audio"), model(side("video"), side("audio")), strict=True))


def _check(case, tag, model):
    for stream, velocity in _outputs(model, case).items():
        case.check(f"{tag}.{stream}", velocity)


def _stem(case) -> str:
    return case.name.rpartition("/")[2].removesuffix(".variants")


def _load(name, **options):
    return load("transformer", _path(name), dtype=options.pop("dtype", torch.float32), **options)


@pytest.mark.parametrize("case", VARIANTS)
@pytest.mark.parametrize("style", STYLES)
def test_one_adapter_in_every_spelling(case, style):
    stem = _stem(case)
    loras = [(_path(f"{stem}_lora_{style}.safetensors"), 1.0)]
    _check(case, "sub_s1", _load(f"{stem}.safetensors", loras=loras))


@pytest.mark.parametrize("case", VARIANTS)
def test_stacked_and_distilled_adapters(case):
    stem = _stem(case)
    tags = {
        "sub_0.8_iclora_-0.3": [("lora_kohya", 0.8), ("iclora", -0.3)],
        "distilled_s1": [("lora_distilled_bf16", 1.0)],
        "distilled_s0.5": [("lora_distilled_bf16", 0.5)],
    }
    for tag, stack in tags.items():
        loras = [(_path(f"{stem}_{name}.safetensors"), strength) for name, strength in stack]
        _check(case, tag, _load(f"{stem}.safetensors", loras=loras))


@pytest.mark.parametrize("case", VARIANTS)
def test_fp8_files_stay_packed(case):
    model = _load(f"{_stem(case)}_fp8.safetensors")
    quantised = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert quantised
    assert {m.quant for m in quantised} == {"float8_e4m3fn"}
    assert all(m.weight.dtype == torch.float8_e4m3fn for m in quantised)
    _check(case, "fp8", model)


def test_gguf_file_stays_packed():
    case = Case("checkpoints/ltx2_23_tiny.variants")
    model = _load("ltx2_23_tiny.gguf")
    assert any(isinstance(m, QuantizedLinear) and m.quant == "gguf:Q8_0" for m in model.modules())
    _check(case, "gguf", model)


@pytest.mark.parametrize("case", golden("checkpoints/ltx2_*_tiny_fp8"))
def test_adapters_over_fp8_equal_the_fused_file(case):
    """Side path on the packed linears against fusion into the same weights, dequantised."""
    stem = case.name.rpartition("/")[2].removesuffix("_fp8")
    variants = Case(f"checkpoints/{stem}.variants")
    lora = _path(f"{stem}_lora_distilled_bf16.safetensors")
    plain = _outputs(_load(f"{stem}_fp8.safetensors"), variants)
    beside = _load(f"{stem}_fp8.safetensors", loras=[(lora, 0.7)])
    attached = _outputs(beside, variants)
    for name, module in list(beside.named_modules()):
        if isinstance(module, QuantizedLinear):
            linear = nn.Linear(module.in_features, module.out_features)
            delta = module.adapter_up @ module.adapter_down
            linear.weight = nn.Parameter(module.dequantized() + delta)
            linear.bias = module.bias
            replace_module(beside, name, linear)
    merged = _outputs(beside, variants)
    for stream in plain:
        torch.testing.assert_close(attached[stream], merged[stream], rtol=1e-4, atol=1e-4)
        assert (attached[stream] - plain[stream]).abs().max() > 1e-3


@pytest.mark.parametrize("case", VARIANTS)
def test_bf16_stays_close_to_float32(case):
    """bf16 compute over two or three blocks: 2 % of the largest output."""
    stem = _stem(case)
    exact = _outputs(_load(f"{stem}_fp8.safetensors"), case)
    for stream, y in _outputs(_load(f"{stem}_fp8.safetensors", dtype=torch.bfloat16), case).items():
        assert (y.float() - exact[stream]).abs().max() < 0.02 * exact[stream].abs().max().clamp(1)


def test_fp8_storage_of_an_unquantised_model():
    """Block linears become e4m3, biases and the rest keep their dtype, the outputs stay near."""
    case = Case("checkpoints/ltx2_23_tiny.variants")
    model = _load("ltx2_23_tiny.safetensors")
    before = _outputs(model, case)
    store_in_fp8(model)
    packed = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    assert len(packed) == 3 * 28  # 34 linears per block of 2.3 less six gates
    assert all(m.bias.dtype == torch.float32 for m in packed.values())
    assert type(model.patchify_proj) is torch.nn.Linear
    for stream, y in _outputs(model, case).items():
        assert y.isfinite().all()
        assert not torch.equal(y, before[stream])
        assert (y - before[stream]).pow(2).mean() < 0.05 * before[stream].pow(2).mean()


def test_a_lora_of_another_version_stops_before_the_weights_are_read():
    with pytest.raises(MismatchError, match=r"this LoRA targets LTX-2\.0"):
        _load("ltx2_23_tiny.gguf", loras=[(_path("ltx2_20_tiny_lora_kohya.safetensors"), 1.0)])


@pytest.mark.parametrize(
    "case", golden("text/gemma3_tiny_fp8_scaled", "text/gemma3_tiny_fp4_mixed")
)
def test_quantised_gemma(case):
    file = ROOT / "text" / case.call["file"]
    model, tokenizer = load("text_encoder", file, dtype=torch.float32), load_tokenizer(file)
    for key, weight in case.group("out.dequantized.model.").items():
        layer = model.get_submodule(key.removesuffix(".weight"))
        assert torch.equal(layer.dequantized(), weight)
    for index, prompt in enumerate(case.call["prompts"]):
        ids, mask = tokenizer.encode(prompt, case.call["max_length"])
        with torch.no_grad():
            hidden = torch.stack(list(model(ids, mask)), dim=-1)  # (B, T, width, states)
        case.check(f"p{index}.hidden", hidden[:, mask[0].bool()])
