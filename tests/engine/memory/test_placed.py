"""A phase that runs out of memory runs again with less on the device, or says what would help."""

import gc
import math
import weakref

import pytest
import torch

from aiprod_engine.errors import OutOfMemory
from aiprod_engine.memory.free import free_bytes, is_out_of_memory
from aiprod_engine.memory.placed import Placed
from aiprod_engine.memory.plan import Need, Way, Weights
from aiprod_engine.memory.residency import Residency

CPU = torch.device("cpu")
NEED = Need("sample", (Weights(1),), (Way("", 3 << 30),))


@pytest.fixture
def resident(make_transformer):
    """A transformer of eight blocks, all on a CPU that plays the device."""
    residency = Residency(make_transformer("2.3"), always_copies=True)
    residency.place(CPU)
    yield residency
    residency.release()


def failing(times, function=lambda: "done"):
    """`function`, after `times` calls that run out of memory."""
    calls = []

    def run():
        calls.append(1)
        if len(calls) <= times:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return function()

    return run


def test_blocks_leave_by_halves_until_all_stream(resident, caplog):
    placed = Placed(NEED, [resident])
    kept = []
    for times in range(1, 4):
        assert placed.attempt(failing(1)) == "done"
        kept.append(len(resident.resident_blocks))
        assert f"{kept[-1]} of 8 blocks stay" in caplog.text
        assert resident.streamed_blocks == 8 - kept[-1], times
    assert kept == sorted(kept, reverse=True)
    assert 0 < kept[0] <= 4
    assert kept[-1] == 0


def test_a_smaller_plan_changes_no_bit(resident, make_inputs):
    inputs = make_inputs(resident.module.config)
    placed = Placed(NEED, [resident])
    with torch.inference_mode():
        expected = resident.module(*inputs)
        found = placed.attempt(failing(2, lambda: resident.module(*inputs)))
    assert resident.streamed_blocks
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_out_of_memory_inside_a_forward_leaves_a_network_that_runs(resident, make_inputs):
    inputs, seen = make_inputs(resident.module.config), []

    def fail_once(index):
        seen.append(index)
        if seen == [0, 1, 2, 3]:
            raise torch.cuda.OutOfMemoryError

    with torch.inference_mode():
        expected = resident.module(*inputs)
        found = Placed(NEED, [resident]).run(lambda model: model(*inputs, None, fail_once))
    assert torch.equal(found[0], expected[0])
    assert seen == [0, 1, 2, 3, *range(8)]


def test_tensors_of_the_failed_attempt_are_gone_before_the_next(resident):
    held = []

    def run():
        if held:
            assert held[0]() is None
            return "done"
        tensor = torch.zeros(1000)
        held.append(weakref.ref(tensor))
        raise torch.cuda.OutOfMemoryError

    gc.disable()  # reference counts alone must do
    try:
        assert Placed(NEED, [resident]).attempt(run) == "done"
    finally:
        gc.enable()


def test_others_leave_first(resident):
    others = ["vae", "text encoder"]
    placed = Placed(NEED, [resident], evict=lambda: bool(others and others.pop()))
    placed.attempt(failing(2))
    assert not others
    assert len(resident.resident_blocks) == 8


def test_a_phase_that_may_leave_goes_on_at_home(resident):
    need = Need("upsample", (Weights(1),), (Way("", 1),), may_leave=True)
    resident.policy = "stream"
    resident.place(CPU, 0)
    placed = Placed(need, [resident])
    placed.attempt(failing(1))
    assert not resident.always_copies
    assert resident.streamed_blocks == 0
    placed.close()
    assert resident.device is None


def test_weights_that_do_not_fit_go_home_at_once(resident):
    need = Need("connect prompt", (Weights(1),), (Way("", 1),), may_leave=True)
    resident.release()
    placed = Placed(need, [resident])
    placed.begin(failing(1))
    assert resident.streamed_blocks == 0
    assert resident.device == CPU
    placed.close()
    with pytest.raises(OutOfMemory, match=r"sample must fit into memory: .* 0\.0 MiB of weights"):
        Placed(NEED, [resident]).begin(failing(1))
    left = ["vae"]
    Placed(NEED, [resident], evict=lambda: bool(left and left.pop())).begin(failing(1))
    assert not left


def test_the_end_is_one_sentence_with_phase_bytes_and_remedy(resident):
    with pytest.raises(OutOfMemory) as caught:
        Placed(NEED, [resident], free=1 << 30).attempt(failing(math.inf))
    text = str(caught.value)
    assert text.startswith("sample must fit into memory: it needs 3.00 GiB beside ")
    assert text.endswith("1.00 GiB is free; lower width, height or frames")
    assert caught.value.__context__ is None  # or the failed tensors would live on


def test_other_errors_pass(resident):
    def run():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        Placed(NEED, [resident]).attempt(run)
    assert len(resident.resident_blocks) == 8


def test_the_line_says_needed_free_and_plan(resident):
    line = Placed(NEED, [resident], free=8 << 30).describe()
    assert line.startswith("sample: needs 3.00 GiB (")
    assert "free 8.00 GiB; all weights stay" in line
    resident.shrink(resident.resident_bytes)
    assert "0 of 8 blocks stay, the others stream" in Placed(NEED, [resident]).describe()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (RuntimeError("Invalid buffer size: 24.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_allocators_are_understood(error, expected):
    assert is_out_of_memory(error) is expected


def test_the_cpu_is_without_end():
    assert free_bytes(CPU) == math.inf
