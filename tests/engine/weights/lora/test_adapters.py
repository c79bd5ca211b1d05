"""Adapter arithmetic against exact algebra: low rank, alpha, LoKr, full deltas, DoRA."""

import pytest
import torch
from goldens import golden

from aiprod_engine.errors import MismatchError
from aiprod_engine.weights.lora import adapters
from aiprod_engine.weights.lora.adapters import Dora, FullDelta, Kronecker, LowRank


def _pairs(case):
    return [LowRank(case.inputs[f"lora{i}.A"], case.inputs[f"lora{i}.B"]) for i in (1, 2)]


@pytest.mark.parametrize("case", golden("checkpoints/lora_fuse_fp32"))
def test_fusion_in_float32(case):
    for name, strengths in case.call["strengths"].items():
        stack = list(zip(_pairs(case), strengths, strict=False))
        case.check(name, adapters.fuse(case.inputs["weight"], stack))


@pytest.mark.parametrize("case", golden("checkpoints/lora_fuse_bf16"))
def test_fusion_into_bf16_rounds_once(case):
    weight = case.inputs["weight"].bfloat16()
    for name, strengths in (("s1", [1.0]), ("multi_0.8_-0.3", [0.8, -0.3])):
        fused = adapters.fuse(weight, list(zip(_pairs(case), strengths, strict=False)))
        assert fused.dtype == torch.bfloat16
        once = case.outputs[f"single_rounding.{name}"]
        differs = fused.float() != once
        assert differs.float().mean() <= 0.01
        case.check(f"single_rounding.{name}", fused.float())  # rtol 2^-7: one ulp
        assert torch.equal(case.outputs[f"exact.{name}"].bfloat16().float(), once)
        # Two or three roundings of the reference (bounds of the fixture's `compare`).
        reference = case.outputs[f"ltx_core.{name}"]
        torch.testing.assert_close(fused.float(), reference, rtol=2**-6, atol=2e-3)


@pytest.mark.parametrize("case", golden("transformer/lora_fuse"))
def test_fusion_of_two_files_into_bf16_weights(case):
    weights = case.group("w.model.diffusion_model.")
    for key, weight in weights.items():
        stack = []
        for index, strength in enumerate(case.call["strengths"]):
            factors = case.group(f"in.lora{index}.diffusion_model.{key.removesuffix('.weight')}.")
            if factors:
                pair = LowRank(factors["lora_A.weight"], factors["lora_B.weight"])
                stack.append((pair, strength))
        exact = adapters.fuse(weight, stack)
        torch.testing.assert_close(exact, case.outputs[f"exact_fp32.{key}"], rtol=1e-6, atol=1e-6)
        case.check(f"fused_bf16.{key}", adapters.fuse(weight.bfloat16(), stack).float())


@pytest.mark.parametrize("case", golden("checkpoints/lora_alpha"))
def test_alpha_over_rank(case):
    down, up = case.inputs["down"], case.inputs["up"]
    for name, how in case.call["cases"].items():
        scale = 1.0 if how["alpha"] is None else how["alpha"] / len(down)
        pair = LowRank(down, up, scale)
        case.check(name, adapters.fuse(case.inputs["weight"], [(pair, how["strength"])]))


def _kinds(case):
    """Output name -> (adapter, strength) of `lora_adapters`."""
    x, alpha, strength = case.inputs, case.call["alpha"], case.call["strength"]
    w1, w2 = (x["lokr_w1"],), (x["lokr_w2"],)
    f1, f2 = (tuple(x[f"lokr_w{i}_{side}"] for side in "ab") for i in (1, 2))
    rank1, rank2 = len(f1[1]), len(f2[1])
    pair = LowRank(x["down"], x["up"], alpha / len(x["down"]))
    rows = Dora(pair, x["dora_rows"], "original_rows")
    return {
        "lokr_full": (Kronecker(w1, w2), strength),
        "lokr_w1_factored": (Kronecker(f1, w2, alpha / rank1), strength),
        "lokr_w2_factored": (Kronecker(w1, f2, alpha / rank2), strength),
        "lokr_both_factored": (Kronecker(f1, f2, alpha / rank2), strength),
        "diff": (FullDelta(x["diff"]), strength),
        "dora_merged_norm_s1": (Dora(pair, x["dora_rows"], "merged_rows"), 1.0),
        "dora_scale_rows_s1": (rows, 1.0),
        "dora_scale_rows_s0.75": (rows, 0.75),
        "dora_scale_cols_s1": (Dora(pair, x["dora_cols"], "merged_columns"), 1.0),
    }


@pytest.mark.parametrize("case", golden("checkpoints/lora_adapters"))
def test_other_adapters(case):
    for name, (adapter, strength) in _kinds(case).items():
        case.check(name, adapters.fuse(case.inputs["weight"], [(adapter, strength)]))
    bias = adapters.fuse(
        case.inputs["bias"], [(FullDelta(case.inputs["diff_b"]), case.call["strength"])]
    )
    case.check("diff_b", bias)


@pytest.mark.parametrize("case", golden("checkpoints/lora_adapters"))
def test_low_rank_factors_are_exact_and_dora_has_none(case):
    weight = case.inputs["weight"]
    for name, (adapter, strength) in _kinds(case).items():
        if isinstance(adapter, Dora):
            with pytest.raises(MismatchError, match="DoRA"):
                adapter.low_rank()
            continue
        down, up = adapters.stack([(adapter, strength)])
        assert len(down) == (adapter.rank or min(weight.shape))
        torch.testing.assert_close(weight + up @ down, case.outputs[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", golden("checkpoints/lora_adapters"))
def test_row_chunks_do_not_change_the_result(case, monkeypatch):
    stack = [(adapter, strength) for adapter, strength in _kinds(case).values()]
    whole = adapters.fuse(case.inputs["weight"], stack)
    for name, least in (("_CHUNK", 0), ("_DEVICE_CHUNK", 0), ("_LEAST_ROWS", 5)):
        monkeypatch.setattr(adapters, name, least)
    torch.testing.assert_close(adapters.fuse(case.inputs["weight"], stack), whole)


def test_order_and_input():
    """Order matters by float32 noise only; the pristine tensor is never written."""
    weight = torch.randn(24, 40).bfloat16()
    before = weight.clone()
    stack = [(LowRank(torch.randn(3, 40), torch.randn(24, 3)), s) for s in (0.5, -0.2, 1.0)]
    one = adapters.fuse(weight.float(), stack)
    other = adapters.fuse(weight.float(), stack[::-1])
    torch.testing.assert_close(one, other, rtol=1e-6, atol=2e-6)
    adapters.fuse(weight, stack)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_are_exact_whatever_the_host_chose(precision):
    """The switches of torch must agree meanwhile: while they differ, reading one may raise."""
    matmul = torch.backends.cuda.matmul
    try:
        torch.set_float32_matmul_precision(precision)
        before = matmul.allow_tf32
        with adapters._exact_products(torch.device("cuda")):
            assert not matmul.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == precision
        assert matmul.allow_tf32 == before
    finally:
        torch.set_float32_matmul_precision("highest")
