"""Stochastic rounding: ours by its statistics, both kernels bit for bit."""

import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from goldens import golden
from safetensors.torch import load_file, save_file

from aiprod_engine.weights.quant import rounding
from aiprod_engine.weights.quant.philox import philox
from aiprod_engine.weights.quant.reference_rounding import add_with_dither, philox_uniform
from aiprod_engine.weights.quant.rounding import layer_seed, round_in_torch, round_stochastically

FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
DRAWS = 20_000
ROOT = Path(rounding.__file__).resolve().parents[3]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


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
        return round_stochastically(x, torch.float8_e4m3fn, layer_seed(*name)).view(torch.uint8)

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


def test_rounding_is_exact_given_its_noise():
    """In float64: up if the fraction of a step (cut to 32 bits) and the noise reach 1."""
    x, seed = torch.randn(4096) * 0.01, layer_seed("a layer")
    for dtype in FORMATS.values():
        step = 2.0 ** (x.double().abs().log2().floor().clamp(min=1 - rounding.FIELDS[dtype][0]))
        step = step / 2 ** rounding.FIELDS[dtype][1]
        noise = philox(torch.arange(1024), seed).flatten()
        whole = ((x.double().abs() / step * 2**32).floor() + noise) / 2**32
        expected = (whole.floor() * step).copysign(x.double())
        assert torch.equal(round_stochastically(x, dtype, seed).double(), expected)


def test_neither_pieces_nor_strides_change_a_bit(monkeypatch):
    x = torch.randn(37, 29).t()
    whole = round_stochastically(x, torch.float8_e4m3fn, 7).view(torch.uint8)
    monkeypatch.setattr(rounding, "_PIECE", 12)
    pieces = round_stochastically(x.contiguous(), torch.float8_e4m3fn, 7).view(torch.uint8)
    assert torch.equal(whole, pieces)


def edges(dtype):
    """Every finite value, what lies between and beside, what float32 has beyond; odd in number."""
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype).float()
    grid = codes[codes.isfinite()].sort().values
    between = (grid[1:] + grid[:-1]) / 2
    beside = [grid.nextafter(torch.tensor(side)) for side in (-torch.inf, torch.inf)]
    tiny = grid[grid > 0][0] * 2.0 ** torch.arange(-40, 0)
    limit = torch.finfo(dtype).max
    odd = torch.tensor([0.0, -0.0, 1e-40, -1e-45, limit * 1.01, -4 * limit, torch.inf, torch.nan])
    spread = torch.randn(3000) * 2.0 ** torch.randint(-20, 10, (3000,))
    x = torch.cat([grid, between, *beside, tiny, -tiny, odd, spread, -torch.inf * torch.ones(1)])
    return x if len(x) % 2 else x[:-1]


def test_what_is_no_number_stays_none():
    x = torch.tensor([torch.nan, -torch.nan])
    assert all(
        round_stochastically(x, dtype, 0).float().isnan().all() for dtype in FORMATS.values()
    )


def inputs():
    """Name -> values; names begin with the type, sizes lie around the kernel's block of 1024."""
    found = {}
    for name, dtype in FORMATS.items():
        x = edges(dtype)
        found |= {f"{name}.{size}": x[-size:] for size in (1, 1023, 1024, 1025, len(x))}
        found |= {f"{name}.{half}": x.to(half) for half in (torch.bfloat16, torch.float16)}
    return {key: x.clone() for key, x in found.items()}


def twin(name, x, seed):
    return round_in_torch(x, rounding.fp8_grid(FORMATS[name.partition(".")[0]]), seed)


SEEDS = (0, 12345, layer_seed("transformer_blocks.0.attn1.to_q"))


@needs_triton
def test_triton_kernel_bit_for_bit(tmp_path):
    """Triton decides at import whether it interprets, hence the process of its own."""
    code = f"""
import torch
from safetensors.torch import load_file, save_file
from aiprod_engine.weights.quant.rounding import fp8_grid
from aiprod_engine.weights.quant.rounding_triton import round_in_triton

grids = {{"e4m3": fp8_grid(torch.float8_e4m3fn), "e5m2": fp8_grid(torch.float8_e5m2)}}
save_file({{
    f"{{seed}}.{{name}}": round_in_triton(x, grids[name[:4]], seed)
    for seed in {SEEDS} for name, x in load_file("inputs.safetensors").items()
}}, "codes.safetensors")
"""
    values = inputs()
    save_file(values, tmp_path / "inputs.safetensors")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    codes = load_file(tmp_path / "codes.safetensors")
    assert len(codes) == len(SEEDS) * len(values)
    for seed in SEEDS:
        for name, x in values.items():
            assert torch.equal(codes[f"{seed}.{name}"], twin(name, x, seed)), (seed, name)


@needs_triton
@pytest.mark.parametrize("capability", [75, 90])
def test_triton_kernel_compiles_for_gpus(capability, tmp_path, monkeypatch):
    """Down to machine code, which takes no GPU; the oldest and a recent one."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from aiprod_engine.weights.quant.rounding_triton import kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    names = ("smallest", "dropped", "largest", "block")
    constants = dict(zip(names, (*rounding.fp8_grid(torch.float8_e5m2), 1024), strict=True))
    types = {"values": "*bf16", "codes": "*u8", "count": "i32", "seed": "i64"}
    source = ASTSource(kernel(), types | dict.fromkeys(names, "constexpr"), constants)
    assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_triton_the_torch_path_remains(caplog):
    with caplog.at_level(logging.INFO):
        assert rounding._kernel(torch.device("cuda", 0)) is None
    assert "runs in torch" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_and_cpu_agree_bit_for_bit():
    if find_spec("triton"):
        assert rounding._kernel(torch.device("cuda", 0)) is not None
    for seed in SEEDS:
        for name, x in inputs().items():
            dtype, expected = FORMATS[name.partition(".")[0]], twin(name, x, seed)
            rounded = round_stochastically(x.to("cuda:0"), dtype, seed)
            assert torch.equal(rounded.view(torch.uint8).cpu(), expected), (seed, name)
            assert torch.equal(twin(name, x.cuda(), seed).cpu(), expected), (seed, name)


def test_philox_known_answer():
    """Counter 0, key 0 of the published test vectors."""
    words = philox(torch.zeros(1, dtype=torch.int64), 0)[0].tolist()
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("case", golden("checkpoints/sr_kernel"))
@pytest.mark.parametrize("seed", [0, 12345])
def test_reference_kernel_bit_for_bit(case, seed):
    assert torch.equal(philox_uniform(64, seed), case.outputs[f"uniform.seed{seed}"])
    for name, dtype in FORMATS.items():
        weight = case.inputs[f"{name}.weight_bytes"].view(dtype)
        rounded, half = add_with_dither(weight, case.inputs[f"{name}.delta"], seed)
        case.check(f"{name}.seed{seed}.bytes", rounded.view(torch.uint8))
        case.check(f"{name}.seed{seed}.bf16", half.float())
