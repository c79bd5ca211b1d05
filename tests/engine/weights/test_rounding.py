"""Stochastic rounding: ours by its statistics, the reference kernel bit for bit."""

import pytest
import torch
from goldens import golden

from aiprod_engine.weights.reference_rounding import add_with_dither, philox_uniform
from aiprod_engine.weights.rounding import layer_seed, round_stochastically

FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
DRAWS = 20_000


@pytest.mark.parametrize("case", golden("checkpoints/sr_stats"))
@pytest.mark.parametrize("name", FORMATS)
def test_rounding_is_unbiased_and_stays_on_the_neighbours(case, name):
    x = case.inputs["x"]
    low, high = case.outputs[f"{name}.lo"], case.outputs[f"{name}.hi"]
    drawn = round_stochastically(x.expand(DRAWS, -1), FORMATS[name], layer_seed("a layer"))
    drawn = drawn.float()
    assert ((drawn == low) | (drawn == high)).all()
    error = (drawn.double().mean(0) - x).abs()
    assert (error <= 5 * (high - low) / (2 * DRAWS**0.5)).all()
    chance = (drawn == high).double().mean(0)
    spread = 5 * (case.outputs[f"{name}.p_hi"] * (1 - case.outputs[f"{name}.p_hi"]) / DRAWS).sqrt()
    apart = low != high
    assert ((chance - case.outputs[f"{name}.p_hi"]).abs() <= spread + 1e-6)[apart].all()


@pytest.mark.parametrize("dtype", FORMATS.values())
def test_grid_values_are_unchanged_and_the_rest_is_clamped(dtype):
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype)
    finite = codes[codes.float().isfinite()]
    rounded = round_stochastically(finite.float(), dtype, layer_seed("grid"))
    assert torch.equal(rounded.view(torch.uint8), finite.view(torch.uint8))
    limit = torch.finfo(dtype).max
    beyond = torch.tensor([limit * 1.01, -limit * 4, float("inf")])
    clamped = round_stochastically(beyond, dtype, layer_seed("grid")).float()
    assert clamped.tolist() == [limit, -limit, limit]


def test_noise_belongs_to_the_key_and_the_recipe():
    x = torch.randn(64, 64)

    def rounded(*name):
        generator = layer_seed(*name)
        return round_stochastically(x, torch.float8_e4m3fn, generator).view(torch.uint8)

    assert torch.equal(rounded("a", "r"), rounded("a", "r"))
    assert not torch.equal(rounded("a", "r"), rounded("b", "r"))
    assert not torch.equal(rounded("a", "r"), rounded("a", "s"))


def test_small_updates_survive_on_average():
    """Nearest rounding loses an update of 2 % of sigma almost entirely; ours keeps all of it."""
    weight = (torch.randn(512, 512) * 0.02).to(torch.float8_e4m3fn).float()
    update = torch.randn(512, 512) * 0.0004
    rounded = round_stochastically(weight + update, torch.float8_e4m3fn, layer_seed("w"))
    gain = ((rounded.float() - weight) * update).sum() / update.square().sum()
    nearest = (((weight + update).to(torch.float8_e4m3fn).float() - weight) * update).sum()
    assert abs(gain - 1) < 0.1
    assert nearest / update.square().sum() < 0.4


@pytest.mark.parametrize("case", golden("checkpoints/sr_kernel"))
@pytest.mark.parametrize("seed", [0, 12345])
def test_reference_kernel_bit_for_bit(case, seed):
    assert torch.equal(philox_uniform(64, seed), case.outputs[f"uniform.seed{seed}"])
    for name, dtype in FORMATS.items():
        weight = case.inputs[f"{name}.weight_bytes"].view(dtype)
        rounded, half = add_with_dither(weight, case.inputs[f"{name}.delta"], seed)
        case.check(f"{name}.seed{seed}.bytes", rounded.view(torch.uint8))
        case.check(f"{name}.seed{seed}.bf16", half.float())
