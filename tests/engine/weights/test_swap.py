"""Adapters of a loaded network change by reading again what they touch, and nothing else."""

import pytest
import torch
from checkpoint_files import P, checkpoint, outputs, sides
from goldens import Case, golden
from safetensors.torch import save_file

from aiprod_engine.errors import MismatchError
from aiprod_engine.memory.residency import Residency
from aiprod_engine.weights import load
from aiprod_engine.weights.containers.header import read_header
from aiprod_engine.weights.quant.linear import QuantizedLinear
from aiprod_engine.weights.reader import Reader
from aiprod_engine.weights.swap import AdaptedNetwork, Base

BASES = ("ltx2_20_tiny.safetensors", "ltx2_23_tiny.safetensors")
FILES = (
    *BASES,
    "ltx2_20_tiny_fp8.safetensors",
    "ltx2_23_tiny_fp8.safetensors",
    "ltx2_23_tiny.gguf",
)


def _stem(name: str) -> str:
    return name[: len("ltx2_20_tiny")]


def _stacks(name: str) -> dict[str, list]:
    a = (checkpoint(f"{_stem(name)}_iclora.safetensors"), 0.7)
    b = (checkpoint(f"{_stem(name)}_lora_kohya.safetensors"), -0.3)
    return {"A": [a], "AB": [a, b], "B": [b], "none": []}


def _state(module) -> dict[str, torch.Tensor]:
    """Every value that computes, adapters beside the weights included, as bytes."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return {k: t.detach().clone().reshape(-1).view(torch.uint8) for k, t in tensors.items()}


def _same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def _stored_bytes(name: str, tensors) -> int:
    """Bytes that the file spends on the given tensors of the transformer."""
    infos = read_header(checkpoint(name)).tensors
    prefix = "" if name.endswith("gguf") else P
    return sum(infos[prefix + t].end - infos[prefix + t].start for t in tensors)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_any_way_to_a_set_gives_what_loading_gives(name, dtype):
    stacks = _stacks(name)
    network = AdaptedNetwork(Base("transformer", checkpoint(name), dtype=dtype), stacks["A"])
    for stack in ("AB", "B", "none", "AB", "none"):
        network.swap(stacks[stack])
        fresh = load("transformer", checkpoint(name), dtype=dtype, loras=stacks[stack])
        assert _same(_state(network.module), _state(fresh)), stack


@pytest.mark.parametrize("name", FILES)
def test_a_swap_reads_only_what_either_set_touches(name):
    stacks = _stacks(name)
    network = AdaptedNetwork(Base("transformer", checkpoint(name)), stacks["A"])
    packed = {n for n, m in network.module.named_modules() if isinstance(m, QuantizedLinear)}
    touched = {s: network._matched(stacks[s]).keys for s in stacks}
    before = stacks, "A"
    for stack in ("AB", "B", "none"):
        old = before[1]
        untouched = dict(network.module.named_parameters())
        done = network.swap(stacks[stack])
        keys = touched[old] | touched[stack]
        assert set(done.tensors) == {k for k in keys if k.removesuffix(".weight") not in packed}
        assert set(done.side_paths) == {k.removesuffix(".weight") for k in keys} & packed
        assert done.bytes_read == _stored_bytes(name, done.tensors)
        for key, parameter in network.module.named_parameters():
            assert (parameter is untouched[key]) == (key not in done.tensors)
        before = stacks, stack
    assert done.bytes_read < checkpoint(name).stat().st_size / 2


def test_the_base_comes_back_as_views_of_the_file():
    name = BASES[1]
    network = AdaptedNetwork(Base("transformer", checkpoint(name)), _stacks(name)["AB"])
    plain = load("transformer", checkpoint(name))
    network.swap([])
    for (key, one), (_, other) in zip(
        network.module.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert one.data_ptr() == other.data_ptr(), key  # not even a copy


def test_strength_zero_and_equal_sets(tmp_path):
    name = BASES[1]
    network = AdaptedNetwork(Base("transformer", checkpoint(name)))
    assert network.swap([(tmp_path / "absent.safetensors", 0.0)]).bytes_read == 0
    assert network.swap([]).tensors == ()


def test_a_set_that_does_not_fit_changes_nothing():
    name = BASES[1]
    network = AdaptedNetwork(Base("transformer", checkpoint(name)), _stacks(name)["A"])
    before = _state(network.module)
    with pytest.raises(MismatchError, match="targets"):
        network.swap(_stacks(BASES[0])["A"])
    assert not network.is_dirty
    assert _same(_state(network.module), before)


@pytest.mark.parametrize("name", [BASES[1], "ltx2_23_tiny_fp8.safetensors"])
def test_a_swap_that_fails_half_way_is_made_good_on_next_use(name, monkeypatch):
    stacks = _stacks(name)
    network = AdaptedNetwork(Base("transformer", checkpoint(name)), stacks["A"])
    before, calls, parameter = _state(network.module), [], Reader.parameter

    def fails(self, key):
        calls.append(key)
        if len(calls) == 3:
            raise MemoryError("no room")
        return parameter(self, key)

    with monkeypatch.context() as patched:
        patched.setattr(Reader, "parameter", fails)
        with pytest.raises(MemoryError):
            network.swap(stacks["B"])
    assert network.is_dirty
    assert network.loras == stacks["A"]
    assert _same(_state(network.ready()), before)
    assert not network.is_dirty
    network.swap(stacks["B"])
    fresh = load("transformer", checkpoint(name), loras=stacks["B"])
    assert _same(_state(network.module), _state(fresh))


def test_two_ways_at_once_where_a_set_changes_packed_and_plain_layers(tmp_path):
    """A DoRA cannot run beside packed layers: refused before anything changes."""
    name = "ltx2_23_tiny_fp8.safetensors"
    network = AdaptedNetwork(Base("transformer", checkpoint(name)))
    layer = next(n for n, m in network.module.named_modules() if isinstance(m, QuantizedLinear))
    linear = network.module.get_submodule(layer)
    save_file(
        {
            f"{layer}.lora_A.weight": torch.randn(2, linear.in_features),
            f"{layer}.lora_B.weight": torch.randn(linear.out_features, 2),
            f"{layer}.dora_scale": torch.rand(linear.out_features, 1),
        },
        tmp_path / "dora.safetensors",
    )
    with pytest.raises(MismatchError, match="DoRA"):
        network.swap([(tmp_path / "dora.safetensors", 1.0)])
    assert not network.is_dirty


@pytest.mark.parametrize("name", [BASES[1], "ltx2_23_tiny_fp8.safetensors"])
@pytest.mark.parametrize("policy", ["resident", "stream"])
def test_device_copies_follow(name, policy):
    """The copies of a residency take the new values in place; the outputs are those of a load."""
    stacks = _stacks(name)
    case = Case(f"checkpoints/{_stem(name)}.expected")
    network = AdaptedNetwork(
        Base("transformer", checkpoint(name), dtype=torch.float32), stacks["A"]
    )
    residency = Residency(network.module, policy, always_copies=True)
    network.holder = residency
    residency.place(torch.device("cpu"))
    outputs("transformer", network.module, case)  # the ring now holds blocks of the next forward
    addresses = {k: p.data_ptr() for k, p in network.module.named_parameters()}
    for stack in ("AB", "none"):
        done = network.swap(stacks[stack])
        if policy == "resident" and not done.side_paths:
            assert {k: p.data_ptr() for k, p in network.module.named_parameters()} == addresses
        residency.place(torch.device("cpu"))
        fresh = load("transformer", checkpoint(name), dtype=torch.float32, loras=stacks[stack])
        with torch.no_grad():
            expected = fresh(*sides(case))
            for one, other in zip(network.module(*sides(case)), expected, strict=True):
                assert torch.equal(one, other)
    residency.release()
    assert _same(_state(network.module), _state(fresh))


@pytest.mark.parametrize("case", golden("checkpoints/ltx2_23_tiny.variants"))
def test_outputs_after_a_swap_are_the_recorded_ones(case):
    network = AdaptedNetwork(
        Base("transformer", checkpoint(BASES[1]), dtype=torch.float32), _stacks(BASES[1])["AB"]
    )
    network.swap([(checkpoint("ltx2_23_tiny_lora_peft.safetensors"), 1.0)])
    inputs = Case("checkpoints/ltx2_23_tiny.expected")
    for stream, velocity in outputs("transformer", network.ready(), inputs).items():
        case.check(f"sub_s1.{stream}", velocity)
