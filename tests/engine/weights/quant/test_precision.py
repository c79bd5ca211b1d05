"""In which form a transformer's weights are held."""

from dataclasses import replace

import pytest
import torch
from goldens import ROOT

from aiprod_engine.errors import MismatchError
from aiprod_engine.pipelines.stored import rebuilt_bytes, stored_weights
from aiprod_engine.weights import load
from aiprod_engine.weights.quant.fp8 import is_storage_target
from aiprod_engine.weights.quant.linear import QuantizedLinear
from aiprod_engine.weights.quant.precision import (
    BFLOAT16,
    FP8_MATMUL,
    FP8_STORAGE,
    PRECISIONS,
    STORED,
    check_precision,
)
from aiprod_engine.weights.recipe import LoraUse, Recipe
from aiprod_engine.weights.source import find

CHECKPOINTS = ROOT / "checkpoints"
PLAIN = CHECKPOINTS / "ltx2_23_tiny.safetensors"
FP8 = CHECKPOINTS / "ltx2_23_tiny_fp8.safetensors"
LORA = CHECKPOINTS / "ltx2_23_tiny_lora_lightricks.safetensors"
CPU = torch.device("cpu")


def held(precision, file=PLAIN, loras=(), dtype=torch.bfloat16):
    return load("transformer", file, "cpu", dtype, loras, precision=precision)


def formats(file):
    return find("transformer", file).formats


def test_fp8_storage_holds_the_targets_in_one_byte_and_nothing_else():
    before, after = held(STORED), held(FP8_STORAGE)
    targets = [n for n, m in before.named_modules()
               if is_storage_target(n) and isinstance(m, torch.nn.Linear)]  # fmt: skip
    packed = {n for n, m in after.named_modules() if isinstance(m, QuantizedLinear)}
    assert packed == set(targets)
    for name in targets:
        assert after.get_submodule(name).weight.dtype == torch.float8_e4m3fn
        one, other = before.get_submodule(name), after.get_submodule(name)
        error = (one.weight.float() - other.dequantized()).abs()
        # e4m3 keeps 3 bits: within 1/16 of each value, and the smallest step at zero
        assert (error <= one.weight.float().abs() / 16 + 2**-10).all()


def test_adapters_run_beside_fp8_storage_unrounded():
    plain, adapted = held(FP8_STORAGE), held(FP8_STORAGE, loras=[(LORA, 1.0)])
    beside = [m for m in adapted.modules() if getattr(m, "adapter_down", None) is not None]
    assert beside
    names = {n for n, m in adapted.named_modules() if m in beside}
    for name in names & {n for n, m in plain.named_modules() if isinstance(m, QuantizedLinear)}:
        one, other = plain.get_submodule(name).weight, adapted.get_submodule(name).weight
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def test_bfloat16_unpacks_a_quantised_file():
    packed, unpacked = held(STORED, FP8), held(BFLOAT16, FP8)
    assert any(isinstance(m, QuantizedLinear) for m in packed.modules())
    for name, module in packed.named_modules():
        if isinstance(module, QuantizedLinear):
            linear = unpacked.get_submodule(name)
            assert type(linear) is torch.nn.Linear
            assert torch.equal(linear.weight, module.dequantized(torch.bfloat16))


@pytest.mark.parametrize(
    ("precision", "file"),
    [(STORED, PLAIN), (BFLOAT16, PLAIN), (FP8_STORAGE, PLAIN), (STORED, FP8), (BFLOAT16, FP8)],
)
def test_the_plan_counts_what_is_held(precision, file):
    recipe = Recipe("transformer", (str(file),), torch.bfloat16, precision=precision)
    module = held(precision, file)
    assert stored_weights(recipe).total == sum(t.nbytes for t in module.state_dict().values())
    assert (rebuilt_bytes(recipe) > 0) == any(
        isinstance(m, QuantizedLinear) for m in module.modules()
    )


def test_a_recipe_loads_with_its_precision():
    recipe = Recipe("transformer", (str(PLAIN),), torch.bfloat16, precision=FP8_STORAGE)
    use = LoraUse(str(LORA), 1.0, 1.0)
    found = load("transformer", recipe.files, "cpu", recipe.dtype, precision=recipe.precision)
    assert any(isinstance(m, QuantizedLinear) for m in found.modules())
    assert hash(recipe.with_lora(use)) != hash(replace(recipe, precision=STORED).with_lora(use))


@pytest.mark.parametrize(
    ("precision", "file", "message"),
    [
        ("fp4", PLAIN, "precision must be one of as stored, bfloat16, fp8 storage, fp8 matmul"),
        (FP8_STORAGE, FP8, "needs an unquantised file, this one holds float8_e4m3fn"),
        (FP8_MATMUL, PLAIN, "this one holds unquantised weights; choose fp8 storage"),
    ],
)
def test_what_cannot_be_is_said(precision, file, message):
    with pytest.raises(MismatchError, match=message):
        check_precision(precision, formats(file), CPU)


def test_fp8_matmul_asks_for_the_device_that_has_it():
    layer = next(iter(formats(FP8).values()))
    scaled = {role: f"layer.{role}" for role in ("weight", "weight_scale", "input_scale")}
    static = {"layer": replace(layer, tensors=scaled, full_precision=False)}
    with pytest.raises(MismatchError, match=r"compute capability 8\.9 or newer, this is cpu"):
        check_precision(FP8_MATMUL, static, CPU)


def test_the_others_are_free():
    for precision in PRECISIONS[:2]:
        for file in (PLAIN, FP8):
            check_precision(precision, formats(file), CPU)
