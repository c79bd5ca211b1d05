"""Streamed weights compute the same bits as resident ones, within the budget.

The CPU plays the device: with `always_copies` weights go through packed buffers and the ring.
"""

import gc
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from goldens import golden
from torch import nn

from aiprod_engine.errors import EngineError, MismatchError
from aiprod_engine.memory.blocks import residency_order, resident_set
from aiprod_engine.memory.home import Home
from aiprod_engine.memory.residency import Residency
from aiprod_engine.types import Modality
from aiprod_engine.weights.quant.formats import LayerFormat
from aiprod_engine.weights.quant.linear import QuantizedLinear

CPU = torch.device("cpu")
VERSIONS = ("2.0", "2.3", "2.5")


def on_cpu(module, **options):
    return Residency(module, always_copies=True, **options)


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def workers():
    return [t for t in threading.enumerate() if t.name.startswith("aiprod-blocks")]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("slots", "share"), [(1, 0.5), (2, 0.0), (2, 0.5), (3, 0.9)])
def test_transformer_streams_the_same_bits(make_transformer, make_inputs, version, slots, share):
    model = make_transformer(version)
    inputs = make_inputs(model.config)
    expected = model(*inputs)
    residency = on_cpu(model, slots=slots)
    residency.place(CPU, share * residency.total_bytes)
    assert len(residency.resident_blocks) < 8
    for _ in range(2):  # the ring wraps around between forwards
        same(model(*inputs), expected)
    residency.release()
    assert not workers()


@pytest.mark.parametrize("family", ["gemma3", "gemma4"])
def test_text_decoder_streams_the_same_bits(make_decoder, family):
    decoder = make_decoder(family)
    ids = torch.randint(0, 50, (2, 9))
    mask = torch.ones_like(ids)
    expected = list(decoder(ids, mask))
    residency = on_cpu(decoder, policy="stream")
    table = decoder.embed_tokens.weight
    residency.place(CPU)
    assert decoder.embed_tokens.weight is table  # only rows of it are read: it stays home
    same(decoder(ids, mask), expected)
    same(decoder(ids, mask), expected)


@pytest.mark.parametrize(
    "case", golden("transformer/full_v20_uniform", "transformer/full_v2[35]_uniform")
)
def test_golden_forward_when_streamed(make_transformer, case):
    """The fixture's own weights: what two of our own forwards have in common would cancel out."""
    version = {"0": "2.0", "3": "2.3", "5": "2.5"}[case.name[-9]]
    model = make_transformer(version, layers=2)
    weights = {k.removeprefix("model.diffusion_model."): v for k, v in case.weights.items()}
    model.load_state_dict({k: weights[k] for k in model.state_dict()}, assign=True)
    on_cpu(model, policy="stream").place(CPU)
    sides = [case.group(f"in.{side}.") for side in ("video", "audio")]
    streams = [Modality(tokens=fields.pop("latent"), **fields) for fields in sides]
    for side, velocity in zip(("video", "audio"), model(*streams), strict=True):
        (name,) = (name for name in case.outputs if name.startswith(side))
        case.check(name, velocity)


class Counted(nn.Module):
    """Blocks of about a megabyte: byte sums are exact to the alignment."""

    streamable = "layers"

    def __init__(self, count=12, width=512):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(count))
        self.ready_blocks = iter
        self.seen = []

    def forward(self, x):
        x = self.first(x)
        for layer in self.ready_blocks(self.layers):
            x = torch.tanh(layer(x))
            self.seen.append(sum(s.nbytes() for s in device_storages(self)))
        return x


def device_storages(module):
    """Distinct storages that the weights use; those at home were marked by a test."""
    storages = (t.untyped_storage() for t in module.parameters())
    return {s.data_ptr(): s for s in storages if s.data_ptr() not in module.home}.values()


def counted():
    module = Counted().eval().requires_grad_(False)
    module.home = {t.untyped_storage().data_ptr() for t in module.parameters()}
    return module


@torch.inference_mode()
def test_weights_four_times_the_budget_run_within_it():
    module = counted()
    x = torch.randn(3, 512)
    expected = module(x)
    residency = on_cpu(module)
    block = residency.total_bytes // 13
    budget = residency.total_bytes / 4
    residency.place(CPU, budget)
    module.seen.clear()
    assert torch.equal(module(x), expected)
    assert residency.placed_bytes <= budget
    # storages seen from the module: outside, resident blocks, and one slot at a time
    assert max(module.seen) <= residency.placed_bytes <= budget + block
    assert len(residency.resident_blocks) == 0  # 13 / 4 = outside + 2 slots
    residency.place(CPU, residency.total_bytes / 2)
    assert len(residency.resident_blocks) == 3  # 13 / 2 = outside + 2 slots + 3
    assert torch.equal(module(x), expected)


def test_least_budget_still_runs():
    module = counted()
    x = torch.randn(1, 512)
    expected = module(x)
    residency = on_cpu(module)
    residency.place(CPU, 0.1)  # what a host without memory grants
    assert residency.placed_bytes == residency.total_bytes // 13 * 3
    assert torch.equal(module(x), expected)


@torch.inference_mode()
def test_grow_and_shrink_move_only_the_difference():
    module = counted()
    x = torch.randn(2, 512)
    expected = module(x)
    residency = on_cpu(module)
    block = residency.total_bytes // 13
    residency.place(CPU)
    kept = {i: module.layers[i].weight for i in range(12)}
    assert residency.placed_bytes == residency.total_bytes
    assert residency.shrink(4 * block) == 4 * block
    assert len(residency.resident_blocks) == 12 - 6  # four free, two became the ring
    for index in residency.resident_blocks:
        assert module.layers[index].weight is kept[index]
    assert torch.equal(module(x), expected)
    before = residency.resident_blocks
    assert residency.grow(2 * block) == 2 * block
    assert set(before) < set(residency.resident_blocks)
    assert torch.equal(module(x), expected)
    assert residency.grow(float("inf")) == 2 * block
    assert residency.placed_bytes == residency.total_bytes
    assert not workers()
    assert residency.shrink(float("inf")) == 10 * block
    assert residency.placed_bytes == 3 * block
    assert torch.equal(module(x), expected)
    assert residency.release() == 3 * block
    assert residency.placed_bytes == 0
    assert residency.device is None


def test_policies(make_transformer):
    model = make_transformer("2.3")
    resident = on_cpu(model, policy="resident")
    resident.place(CPU, 0)
    assert resident.placed_bytes == resident.total_bytes
    resident.release()
    stream = on_cpu(model, policy="stream")
    stream.place(CPU, 1e12)
    assert stream.resident_blocks == ()
    with pytest.raises(MismatchError, match="auto, resident, stream"):
        on_cpu(model, policy="fast")


def test_cpu_computes_at_home_without_copies(make_transformer):
    model = make_transformer("2.0")
    weights = {k: v.data_ptr() for k, v in model.state_dict().items()}
    residency = Residency(model)
    assert residency.place(CPU, 0) == residency.total_bytes
    assert {k: v.data_ptr() for k, v in model.state_dict().items()} == weights


def test_a_network_without_blocks_is_one_block():
    vae = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    x = torch.randn(1, 3, 8, 8)
    expected = vae(x)
    residency = on_cpu(vae)
    assert residency.place(CPU, 0) == residency.total_bytes
    assert torch.equal(vae(x), expected)
    residency.release()
    assert torch.equal(vae(x), expected)


def test_cancel_joins_the_worker_frees_the_slots_and_the_next_forward_works(
    make_transformer, make_inputs
):
    model = make_transformer("2.3")
    inputs = make_inputs(model.config)
    expected = model(*inputs)
    residency = on_cpu(model, policy="stream")
    residency.place(CPU)
    placed = residency.placed_bytes

    def cancel(index):
        if index == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model(*inputs, on_block=cancel)
    gc.collect()
    assert not workers()
    assert residency.placed_bytes < placed
    same(model(*inputs), expected)
    assert residency.placed_bytes == placed


def test_error_in_the_worker_surfaces_at_the_consumer(make_transformer, make_inputs, monkeypatch):
    model = make_transformer("2.3")
    inputs = make_inputs(model.config)
    expected = model(*inputs)
    residency = on_cpu(model, policy="stream")
    residency.place(CPU)
    broken = residency._visits.homes[5]
    threads = []

    def fail(buffer):
        threads.append(threading.current_thread().name)
        raise OSError("the disk is gone")

    monkeypatch.setattr(broken, "pack", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        model(*inputs)
    assert threads[0].startswith("aiprod-blocks")
    gc.collect()
    assert not workers()
    assert residency._visits.placed_bytes == 0
    monkeypatch.undo()
    same(model(*inputs), expected)


def test_a_text_forward_that_is_dropped_frees_the_ring(make_decoder):
    decoder = make_decoder("gemma3")
    ids = torch.randint(0, 50, (1, 4))
    residency = on_cpu(decoder, policy="stream")
    residency.place(CPU)
    states = decoder(ids, torch.ones_like(ids))
    next(states)
    next(states)
    states.close()
    assert not workers()
    assert residency._visits.placed_bytes == 0


def test_one_forward_at_a_time(make_decoder):
    decoder = make_decoder("gemma3")
    ids = torch.randint(0, 50, (1, 4))
    expected = list(decoder(ids, torch.ones_like(ids)))
    on_cpu(decoder, policy="stream").place(CPU)
    first = decoder(ids, torch.ones_like(ids))
    next(first)
    next(first)
    same(decoder(ids, torch.ones_like(ids)), expected)
    with pytest.raises(EngineError, match="one forward at a time"):
        list(first)


def test_network_dies_with_its_residency(make_transformer, make_inputs):
    model = make_transformer("2.3")
    residency = on_cpu(model, policy="stream")
    residency.place(CPU)
    model(*make_inputs(model.config))
    alive = weakref.ref(model)
    gc.disable()  # no cycles: counting alone must do
    try:
        del model, residency
        assert alive() is None
    finally:
        gc.enable()
    assert not workers()


class Quantised(nn.Module):
    streamable = "layers"

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.ready_blocks = iter

    def forward(self, x):
        for layer in self.ready_blocks(self.layers):
            x = layer(x)
        return x


def fp8_linear(width):
    layer = LayerFormat("fp8_cast", {"weight": "weight"})
    module = QuantizedLinear(nn.Linear(width, width), layer)
    module.weight = torch.randn(width, width).to(torch.float8_e4m3fn)
    return module


def test_quantised_blocks_of_unequal_size_and_odd_dtypes():
    layers = [fp8_linear(24), nn.Linear(24, 24).bfloat16().float(), fp8_linear(24)]
    for index, layer in enumerate(layers):
        layer.register_buffer("flag", torch.tensor(index % 2 == 0))  # 0-dim, one byte
        layer.register_buffer("empty", torch.empty(0, 3, dtype=torch.int8))
    module = Quantised(layers).eval().requires_grad_(False)
    x = torch.randn(5, 24)
    expected = module(x)
    residency = on_cpu(module, policy="stream")
    residency.place(CPU)
    assert torch.equal(module(x), expected)
    assert module.layers[0].weight.dtype == torch.float8_e4m3fn


def test_adapters_attached_at_home_travel_with_their_block():
    module = Quantised([fp8_linear(16) for _ in range(4)]).eval().requires_grad_(False)
    residency = on_cpu(module, policy="stream")
    before = residency.total_bytes
    module.layers[2].set_adapter(torch.randn(2, 16), torch.randn(16, 2))
    x = torch.randn(3, 16)
    expected = module(x)
    residency.place(CPU)
    assert residency.total_bytes == before + 2 * 2 * 16 * 4
    assert torch.equal(module(x), expected)


def test_home_packs_at_aligned_offsets():
    module = nn.Module()
    module.register_buffer("odd", torch.arange(5, dtype=torch.uint8))
    module.register_buffer("weight", torch.randn(3, 2))
    own = module.weight
    home = Home(module)
    assert home.nbytes == 16 + 32
    buffer = home.copy_to(CPU)
    assert module.weight.data_ptr() == buffer.data_ptr() + 16
    assert torch.equal(module.weight, own)
    home.move_out()
    assert module.weight.data_ptr() == own.data_ptr()


def test_resident_blocks_are_spread_over_the_depth():
    order = residency_order(48)
    assert sorted(order) == list(range(48))
    for count in range(19, 48):
        gaps = sorted(order[:count])
        longest = max(b - a for a, b in zip(gaps, [*gaps[1:], gaps[0] + 48], strict=True)) - 1
        assert longest <= -(-(48 - count) // count) + 1
    assert resident_set([10] * 48, room=1000, slots=2) == frozenset(range(48))
    assert resident_set([10] * 48, room=479, slots=2) == frozenset(order[:45])
    assert resident_set([10] * 48, room=15, slots=2) == frozenset()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_streaming_on_cuda_equals_resident(make_transformer, make_inputs, share):
    cuda = torch.device("cuda", 0)
    model = make_transformer("2.3")
    residency = Residency(model)
    residency.place(cuda)
    streams = [moved(side, cuda) for side in make_inputs(model.config)]
    expected = model(*streams)
    residency.place(cuda, share * residency.total_bytes)
    assert len(residency.resident_blocks) < 8
    for _ in range(3):
        same(model(*streams), expected)
    residency.release()
    assert next(model.parameters()).device == CPU
    assert not workers()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_bytes_are_those_that_are_reported():
    cuda = torch.device("cuda", 0)
    module = counted()
    residency = Residency(module)
    before = torch.cuda.memory_allocated(cuda)
    residency.place(cuda, residency.total_bytes / 2)
    module(torch.randn(2, 512, device=cuda))
    used = torch.cuda.memory_allocated(cuda) - before
    assert used == pytest.approx(residency.placed_bytes, rel=0.05)  # plus the input
    assert residency.locked_bytes <= 2 * residency.total_bytes // 13
    residency.release()
    assert torch.cuda.memory_allocated(cuda) - before < used / 10
    assert residency.locked_bytes == 0


def moved(side, device):
    tensors = {k: v.to(device) for k, v in vars(side).items() if torch.is_tensor(v)}
    return replace(side, **tensors)
