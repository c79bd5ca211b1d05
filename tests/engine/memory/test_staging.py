"""What happens where page-locking is refused, shown with a stand-in for the CUDA runtime."""

import pytest
import torch

from aiprod_engine.memory import ring, staging
from aiprod_engine.memory.staging import LARGEST_SHARE, Staging


class Runtime:
    """Locks like CUDA: the error of a refusal is reported again by the next kernel launch."""

    def __init__(self, status):
        self.status, self.pending, self.locked = status, 0, set()

    def cudaHostRegister(self, address, size, flags):  # noqa: ARG002, N802
        self.pending = self.status
        self.locked |= {address} if self.status == 0 else set()
        return self.status

    def cudaHostUnregister(self, address):  # noqa: N802
        self.locked.remove(address)

    def launch(self, *_, **__):
        status, self.pending = self.pending, 0
        if status:
            raise RuntimeError("CUDA error: out of memory")
        return torch.ones(1)


@pytest.fixture
def runtime(monkeypatch, request):
    found = Runtime(request.param)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: found)
    return found


@pytest.mark.parametrize("runtime", [2, 712], indirect=True)
def test_a_refusal_leaves_no_error_to_the_next_kernel(runtime, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch, "ones", runtime.launch)
        buffer = Staging(64)
    runtime.launch()
    assert buffer.locked_bytes == 0
    assert buffer.buffer.nbytes == 64
    buffer.close()


@pytest.mark.parametrize("runtime", [0], indirect=True)
def test_what_was_locked_is_unlocked_once(runtime):
    buffer = Staging(64)
    assert (buffer.locked_bytes, len(runtime.locked)) == (64, 1)
    buffer.close()
    buffer.close()
    assert (buffer.locked_bytes, len(runtime.locked)) == (0, 0)


@pytest.mark.parametrize("runtime", [0], indirect=True)
def test_cached_files_count_as_memory_that_can_be_locked(runtime, monkeypatch, tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal: 900 kB\nMemFree: 1 kB\nMemAvailable: 100 kB\n")
    monkeypatch.setattr(staging, "_MEMORY", path)
    most = int(100 * 1024 * LARGEST_SHARE)
    assert Staging(most).locked_bytes == most
    assert Staging(most + 1).locked_bytes == 0
    monkeypatch.setattr(staging, "_MEMORY", tmp_path / "none")
    assert Staging(most + 1).locked_bytes == most + 1


def test_a_slot_that_cannot_be_made_locks_nothing(monkeypatch):
    def no_stream(_):
        raise RuntimeError("CUDA error: out of memory")

    locked = []
    monkeypatch.setattr(torch.cuda, "Stream", no_stream)
    monkeypatch.setattr(ring, "Staging", locked.append)
    with pytest.raises(RuntimeError, match="out of memory"):
        ring.CudaSlot(64, torch.device("cpu"))
    assert not locked
