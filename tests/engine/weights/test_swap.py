"""Adapters of one loaded network: fused by the device, or beside the weights; the base stays."""

import gc
import weakref
from dataclasses import replace
from functools import cache

import pytest
import torch
from checkpoint_files import P, checkpoint, outputs, sides
from goldens import Case, golden
from safetensors.torch import save_file
from torch import nn

from aiprod_engine.errors import CheckpointError, MismatchError
from aiprod_engine.memory.home import Home
from aiprod_engine.memory.residency import Residency
from aiprod_engine.weights import load
from aiprod_engine.weights.containers.read import read_header
from aiprod_engine.weights.lora import adapters as lora_adapters
from aiprod_engine.weights.lora.side_path import AdaptedLinear
from aiprod_engine.weights.quant.linear import QuantizedLinear
from aiprod_engine.weights.quant.precision import BFLOAT16, FP8_STORAGE, STORED
from aiprod_engine.weights.recipe import LoraUse, Recipe
from aiprod_engine.weights.swap import AdaptedNetwork

CPU = torch.device("cpu")
BASES = ("ltx2_20_tiny.safetensors", "ltx2_23_tiny.safetensors")
FP8 = "ltx2_23_tiny_fp8.safetensors"
FILES = (*BASES, "ltx2_20_tiny_fp8.safetensors", FP8, "ltx2_23_tiny.gguf")
# The CPU plays the device: all blocks stay, all stream, some stay.
PLACES = {"resident": (1.0, 2), "stream": (0.0, 2), "mixed": (0.9, 1)}  # share, slots


def _stem(name: str) -> str:
    return name[: len("ltx2_20_tiny")]


def _use(file: str, strength: float, beside: bool = False) -> LoraUse:
    return LoraUse(str(checkpoint(file)), strength, strength, beside)


def _stacks(name: str) -> dict[str, tuple[LoraUse, ...]]:
    a = _use(f"{_stem(name)}_iclora.safetensors", 0.7)
    b = _use(f"{_stem(name)}_lora_kohya.safetensors", -0.3)
    return {"A": (a,), "AB": (a, b), "B": (b,), "none": ()}


def _recipe(name: str, **fields) -> Recipe:
    return Recipe("transformer", (str(checkpoint(name)),), **fields)


def _at_home(name: str, **fields) -> AdaptedNetwork:
    """A network that computes with its home tensors."""
    network = AdaptedNetwork(_recipe(name, **fields), Residency)
    network.holder.place(CPU)
    return network


def _placed(name: str, place: str, **fields) -> AdaptedNetwork:
    """A network of which a CPU that plays the device holds copies."""
    _, slots = PLACES[place]
    network = AdaptedNetwork(
        _recipe(name, **fields), lambda module: Residency(module, "auto", slots, always_copies=True)
    )
    _place(network, place)
    return network


def _place(network: AdaptedNetwork, place: str) -> None:
    share, _ = PLACES[place]
    network.holder.place(CPU, share * network.holder.total_bytes)


def _fresh(name: str, loras, **fields) -> nn.Module:
    """The same weights by the way of `load`, which fuses on its own."""
    given = [(u.path, {"video": u.video, "audio": u.audio}, u.beside) for u in loras]
    return load("transformer", checkpoint(name), loras=given, **fields)


def _state(module) -> dict[str, torch.Tensor]:
    """Every value that computes, adapters beside the weights included, as bytes."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return {k: t.detach().clone().reshape(-1).view(torch.uint8) for k, t in tensors.items()}


def _same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@torch.no_grad()
def _velocities(module, name: str) -> list[torch.Tensor]:
    linear = module.patchify_proj
    return list(module(*_inputs(name, linear.weight.dtype, linear.weight.device)))


@cache
def _expected(name: str, loras: tuple[LoraUse, ...], **fields) -> list[torch.Tensor]:
    return _velocities(_fresh(name, loras, **fields), name)


def _inputs(name: str, dtype: torch.dtype, device: torch.device) -> list:
    """The fixture's inputs of both streams; times and positions stay float32."""
    streams = []
    for side in sides(Case(f"checkpoints/{_stem(name)}.expected")):
        tensors = {k: v.to(device) for k, v in vars(side).items() if torch.is_tensor(v)}
        for key in ("tokens", "context"):
            tensors[key] = tensors[key].to(dtype)
        streams.append(replace(side, **tensors))
    return streams


def _equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _addresses(module) -> dict[str, int]:
    return {key: tensor.data_ptr() for key, tensor in module.named_parameters()}


def _stored_bytes(name: str, tensors) -> int:
    """Bytes that the file spends on the given tensors of the transformer."""
    infos = read_header(checkpoint(name)).tensors
    prefix = "" if name.endswith("gguf") else P
    return sum(infos[prefix + t].end - infos[prefix + t].start for t in tensors)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, None) for name in FILES), (BASES[1], torch.float32), (FILES[-1], torch.float32)],
)
def test_any_way_to_a_set_gives_what_loading_gives(name, dtype):
    stacks, network = _stacks(name), _at_home(name, dtype=dtype)
    for stack in ("A", "AB", "B", "none", "AB", "none"):
        network.use(stacks[stack])
        fresh = _fresh(name, stacks[stack], dtype=dtype)
        assert _same(_state(network.module), _state(fresh)), stack


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [BASES[1], FP8])
def test_copies_compute_what_loading_gives_wherever_they_lie(name, place):
    """Fused while placed, at every visit, or beside: one recipe, the same bits."""
    stacks, network = _stacks(name), _placed(name, place, dtype=torch.float32)
    for stack in ("A", "AB", "none", "B"):
        network.use(stacks[stack])
        expected = _expected(name, stacks[stack], dtype=torch.float32)
        for _ in range(2):  # a streamed block comes again
            assert _equal(_velocities(network.module, name), expected), stack
        _place(network, place)
        assert _equal(_velocities(network.module, name), expected), stack


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("precision", [BFLOAT16, FP8_STORAGE])
def test_other_precisions_of_the_weights(name, precision):
    """Decoded weights are fused from what is stored, and rounded once."""
    if precision == FP8_STORAGE and name not in BASES:
        return
    fields = {"dtype": torch.bfloat16, "precision": precision}
    stacks, network = _stacks(name), _placed(name, "stream", **fields)
    for stack in ("AB", "none", "B"):
        network.use(stacks[stack])
        expected = _expected(name, stacks[stack], **fields)
        assert _equal(_velocities(network.module, name), expected), stack


def test_a_swap_is_bit_exact_between_residencies():
    """Blocks that come to stay or begin to stream in between change nothing."""
    name = BASES[1]
    stacks, network = _stacks(name), _placed(name, "mixed", dtype=torch.bfloat16)
    residency, found = network.holder, []
    for share, resident in ((1.0, 3), (0.9, 1), (0.0, 0), (0.9, 1), (1.0, 3)):
        residency.place(CPU, share * residency.total_bytes)
        assert len(residency.resident_blocks) == resident
        for stack in ("AB", "B"):
            network.use(stacks[stack])
            found.append(_velocities(network.module, name))
    assert all(_equal(found[i], found[i % 2]) for i in range(len(found)))
    assert not _equal(found[0], found[1])


@pytest.mark.parametrize("name", FILES)
def test_a_swap_reads_only_what_either_set_touches(name):
    stacks, network = _stacks(name), _placed(name, "resident")
    packed = {n for n, m in network.module.named_modules() if isinstance(m, QuantizedLinear)}
    touched = {
        s: set().union(*(f.keys for f in network._matched(stacks[s])))
        for s in stacks
    }  # fmt: skip
    old, addresses = "none", _addresses(network.module)
    for stack in ("A", "AB", "B", "none"):
        before = _state(network.module)
        done = network.use(stacks[stack])
        keys = touched[old] | touched[stack]
        beside = {k.removesuffix(".weight") for k in keys if k.endswith(".weight")} & packed
        assert set(done.side_paths) == beside
        assert set(done.tensors) == {k for k in keys if k.removesuffix(".weight") not in beside}
        assert done.bytes_read == _stored_bytes(name, done.tensors)
        after = _state(network.module)
        for key in after.keys() - done.tensors:
            if "adapter" not in key:
                assert torch.equal(after[key], before[key])
        if not packed:
            assert _addresses(network.module) == addresses  # in place
        old = stack
    assert done.bytes_read < checkpoint(name).stat().st_size / 2


@pytest.mark.parametrize("name", [BASES[1], FP8])
def test_the_home_stays_a_view_of_the_file(name, monkeypatch):
    """No weight of the base is copied on the CPU, whatever a device fuses into its own copies."""
    one, other = (_addresses(load("transformer", checkpoint(name))) for _ in range(2))
    views = {key for key in one if one[key] == other[key]}  # of one mapping
    assert len(views) > len(one) / 2
    network, stacks = _placed(name, "stream"), _stacks(name)
    monkeypatch.setattr(Home, "change_at_home", None)
    for stack in ("A", "AB", "B"):
        network.use(stacks[stack])
        _velocities(network.module, name)
    network.holder.release()
    found = _addresses(network.module)
    assert all(found[key] == one[key] for key in views)


def test_own_bytes_are_what_loading_converted():
    def own(name, **fields):
        return AdaptedNetwork(_recipe(name, **fields), Residency).own_bytes

    assert own(BASES[1]) == own(FP8) == 0
    assert own("ltx2_23_tiny.gguf") > 0  # its mixture of float types
    network = AdaptedNetwork(_recipe(BASES[1], dtype=torch.float16), Residency)
    tensors = network.module.state_dict().values()
    assert network.own_bytes == sum(tensor.nbytes for tensor in tensors)


def test_sets_that_are_equal_do_nothing(tmp_path):
    network = _at_home(BASES[1])
    absent = LoraUse(str(tmp_path / "absent.safetensors"), 0.0, 0.0)
    assert network.use((absent,)) == network.use(()) == type(network.use(()))()
    stack = _stacks(BASES[1])["A"]
    assert network.use(stack).tensors
    assert network.use(stack).tensors == ()
    assert network.loras == stack


def test_a_file_that_was_replaced_is_read_again(tmp_path):
    network = _at_home(BASES[1], dtype=torch.float32)
    file = tmp_path / "lora.safetensors"
    linear = network.module.get_submodule("transformer_blocks.0.attn1.to_q")
    pair = (torch.ones(2, linear.in_features), torch.ones(linear.out_features, 2))
    use, found = LoraUse(str(file), 1.0, 1.0), []
    for factor in (1.0, 2.0):
        down, up = pair[0] * factor, pair[1]
        base = "transformer_blocks.0.attn1.to_q"
        tensors = {f"{base}.lora_A.weight": down, f"{base}.lora_B.weight": up}
        save_file(tensors, tmp_path / "new", {"take": "x" * int(factor)})
        (tmp_path / "new").rename(file)
        network.use((use,))
        found.append(linear.weight.clone())
    torch.testing.assert_close(found[1] - found[0], torch.full_like(found[0], 2.0))


def test_a_set_that_does_not_fit_changes_nothing():
    network = _at_home(BASES[1])
    network.use(_stacks(BASES[1])["A"])
    before = _state(network.module)
    with pytest.raises(MismatchError, match="targets"):
        network.use(_stacks(BASES[0])["A"])
    assert network.loras == _stacks(BASES[1])["A"]
    assert _same(_state(network.module), before)


@pytest.mark.parametrize(
    ("name", "place"),
    [(BASES[1], "resident"), (BASES[1], "mixed"), (FP8, "resident"), (FP8, "stream")],
)
@pytest.mark.parametrize("error", [RuntimeError("lost"), KeyboardInterrupt()])
def test_a_swap_that_fails_half_way_is_made_good_on_next_use(name, place, error, monkeypatch):
    stacks, network = _stacks(name), _placed(name, place)
    network.use(stacks["A"])
    expected, follow = _velocities(network.module, name), Home.follow

    def fails(self, *args):
        follow(self, *args)  # outside of the blocks; the blocks are missing
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Home, "follow", fails)
        with pytest.raises(type(error)):
            network.use(stacks["B"])
    assert network.loras is None
    assert network.holder.placed_bytes == 0
    network.use(stacks["A"])
    _place(network, place)
    assert _equal(_velocities(network.module, name), expected)
    network.use(())
    assert _equal(_velocities(network.module, name), _expected(name, ()))


def test_running_out_of_memory_in_a_swap_takes_the_copies_off_the_device(monkeypatch):
    name = BASES[1]
    stacks, network = _stacks(name), _placed(name, "resident")
    with monkeypatch.context() as patched:
        patched.setattr(lora_adapters, "_buffer", _out_of_memory)
        network.use(stacks["AB"])
    assert network.loras == stacks["AB"]
    assert network.holder.device is None
    network.holder.place(CPU)
    assert _equal(_velocities(network.module, name), _expected(name, stacks["AB"]))


def _out_of_memory(*_):
    raise torch.cuda.OutOfMemoryError


def test_a_damaged_file_is_named_before_anything_changes(tmp_path):
    base, file = "transformer_blocks.0.attn1.to_q", tmp_path / "damaged.safetensors"
    network = _at_home(BASES[1])
    linear = network.module.get_submodule(base)
    up = torch.full((linear.out_features, 2), torch.nan)
    tensors = {
        f"{base}.lora_A.weight": torch.ones(2, linear.in_features),
        f"{base}.lora_B.weight": up,
    }
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"damaged\.safetensors: .* no finite numbers"):
        network.use((LoraUse(str(file), 1.0, 1.0),))
    assert network.loras == ()


def test_a_dora_cannot_run_beside_packed_layers(tmp_path):
    """Refused before anything changes."""
    network = _at_home(FP8)
    layer = next(n for n, m in network.module.named_modules() if isinstance(m, QuantizedLinear))
    linear = network.module.get_submodule(layer)
    file = tmp_path / "dora.safetensors"
    save_file(
        {
            f"{layer}.lora_A.weight": torch.randn(2, linear.in_features),
            f"{layer}.lora_B.weight": torch.randn(linear.out_features, 2),
            f"{layer}.dora_scale": torch.rand(linear.out_features, 1),
        },
        file,
    )
    with pytest.raises(MismatchError, match="DoRA"):
        network.use((LoraUse(str(file), 1.0, 1.0),))
    assert network.loras == ()


@pytest.mark.parametrize("place", PLACES)
def test_beside_the_weights_a_new_strength_touches_none_of_them(place):
    name = BASES[1]
    network = _placed(name, place, dtype=torch.float32)
    weights = {k: t for k, t in _state(network.module).items() if k.endswith("weight")}
    file = f"{_stem(name)}_lora_kohya.safetensors"
    for strength in (0.5, -0.2, 0.0):
        stack = (_use(file, strength, beside=True),)
        done = network.use(stack)
        assert done.tensors == ()
        assert done.bytes_read == 0
        assert done.side_paths
        beside = _velocities(network.module, name)
        assert _equal(beside, _expected(name, stack, dtype=torch.float32))
        fused = _fresh(name, (replace(stack[0], beside=False),), dtype=torch.float32)
        for one, other in zip(beside, _velocities(fused, name), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert any(isinstance(module, AdaptedLinear) for module in network.module.modules())
    network.holder.release()
    after = _state(network.module)
    assert all(torch.equal(after[key], weights[key]) for key in weights)


def test_one_file_fused_and_another_beside():
    name = BASES[1]
    stack = (
        _use(f"{_stem(name)}_iclora.safetensors", 0.7),
        _use(f"{_stem(name)}_lora_kohya.safetensors", -0.3, beside=True),
    )
    network = _placed(name, "mixed", dtype=torch.float32)
    network.use(stack)
    found = _velocities(network.module, name)
    assert _equal(found, _expected(name, stack, dtype=torch.float32))
    network.use(())
    assert _equal(
        _velocities(network.module, name),
        _velocities(load("transformer", checkpoint(name), dtype=torch.float32), name),
    )


@pytest.mark.parametrize("kind", ["pair", "lokr", "dora", "columns", "diff"])
def test_every_kind_of_adapter_is_fused_in_place(kind, tmp_path):
    """In a copy that holds the weight itself, from factors that travelled along."""
    name, base = BASES[1], "transformer_blocks.1.ff.net.0.proj"
    network = _placed(name, "stream", dtype=torch.bfloat16)
    rows, columns = network.module.get_submodule(base).weight.shape
    tensors = {
        f"{base}.lora_A.weight": torch.randn(3, columns) * 0.1,
        f"{base}.lora_B.weight": torch.randn(rows, 3) * 0.1,
    }
    if kind == "lokr":
        tensors = {
            f"{base}.lokr_w1": torch.randn(2, 4) * 0.1,
            f"{base}.lokr_w2_a": torch.randn(rows // 2, 2) * 0.1,
            f"{base}.lokr_w2_b": torch.randn(2, columns // 4) * 0.1,
        }
    elif kind == "diff":
        tensors = {
            f"{base}.diff": torch.randn(rows, columns) * 0.1,
            f"{base}.diff_b": torch.randn(rows) * 0.1,
        }
    elif kind != "pair":
        shape = (rows, 1) if kind == "dora" else (1, columns)
        tensors[f"{base}.dora_scale"] = torch.rand(shape)
    save_file(tensors, tmp_path / "one.safetensors")
    one = LoraUse(str(tmp_path / "one.safetensors"), 0.8, 0.8)
    stack = (one, *_stacks(name)["AB"], one)
    network.use(stack)
    expected = _expected(name, stack, dtype=torch.bfloat16)
    assert _equal(_velocities(network.module, name), expected)
    network.use((one,))
    assert not _equal(_velocities(network.module, name), expected)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", golden("checkpoints/ltx2_23_tiny.variants"))
def test_outputs_after_a_swap_are_the_recorded_ones(case, place):
    network = _placed(BASES[1], place, dtype=torch.float32)
    network.use(_stacks(BASES[1])["AB"])
    network.use((_use("ltx2_23_tiny_lora_peft.safetensors", 1.0),))
    inputs = Case("checkpoints/ltx2_23_tiny.expected")
    for stream, velocity in outputs("transformer", network.module, inputs).items():
        case.check(f"sub_s1.{stream}", velocity)


@pytest.mark.parametrize("precision", [STORED, BFLOAT16])
@pytest.mark.parametrize("place", ["resident", "stream"])
def test_a_network_with_adapters_dies_with_its_last_user(precision, place):
    network = _placed(FP8, place, dtype=torch.bfloat16, precision=precision)
    network.use(_stacks(FP8)["AB"])
    _velocities(network.module, FP8)
    alive = weakref.ref(network.module)
    gc.disable()  # no cycles: counting alone must do
    try:
        del network
        assert alive() is None
    finally:
        gc.enable()


def test_recipes_that_differ_in_adapters_have_one_origin():
    base = _recipe(BASES[1])
    assert base.with_lora(_use("x", 1.0)).origin is base.origin
    assert replace(base, residency="stream").origin is base.origin
    assert replace(base, precision=BFLOAT16).origin is not base.origin
    assert _recipe(BASES[1]).origin is not base.origin
    assert _recipe(BASES[1]) == base
    assert base.without_loras().origin is not base.origin


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_streamed_and_resident_copies_are_the_same_bits():
    name, cuda = BASES[1], torch.device("cuda", 0)
    network = AdaptedNetwork(_recipe(name, dtype=torch.bfloat16), Residency)
    residency, found = network.holder, []
    for share in (1.0, 0.6, 0.0):
        residency.place(cuda, share * residency.total_bytes)
        network.use(())
        network.use(_stacks(name)["AB"])
        found.append([side.cpu() for side in _velocities(network.module, name)])
    assert all(_equal(one, found[0]) for one in found)
