"""What one adapter adds to one tensor, as arithmetic: low rank, Kronecker, full delta, DoRA.

Every adapter yields its float32 delta (without strength) for successive row chunks of the weight
that it changes, always computed from the pristine weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ...errors import MismatchError

NOT_BESIDE = (
    "a DoRA adapter rescales the whole weight and cannot run beside it; "
    "use it with an unquantised model, and fused"
)
# Bytes of a float32 row chunk. On the CPU larger ones are slower and leave holes in the heap, as
# what outlives them is allocated in between; an accelerator wants few launches.
_CHUNK, _DEVICE_CHUNK = 2 << 20, (256 << 20) // 6
_LEAST_ROWS = 128  # fewer make a product of high rank slow

T = TypeVar("T")


class Adapter(Protocol):
    """A change of one tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that it changes."""

    @property
    def rank(self) -> int | None:
        """Rank of the delta where it is limited."""

    def deltas(self, weight: Tensor, chunks: Sequence[slice], out: Tensor) -> Iterator[Tensor]:
        """float32 delta of each row chunk of `weight`, on its device.

        It lies in `out`, which has room for the largest chunk: use it before taking the next.
        """

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """Exact factors (down, up) with delta = up @ down, float32 unless they are stored ones."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """scale * up @ down: `down` = A (rank, in), `up` = B (out, rank), scale = alpha / rank or 1."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.up.shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def deltas(self, weight: Tensor, chunks: Sequence[slice], out: Tensor) -> Iterator[Tensor]:
        down, up = (_operand(t, weight.device) for t in (self.down, self.up))
        for rows in chunks:
            factor = up[rows] * self.scale
            yield torch.mm(factor, down, out=out[: len(factor)])

    def low_rank(self) -> tuple[Tensor, Tensor]:
        return self.down, self.up if self.scale == 1 else self.up.float() * self.scale


@dataclass(frozen=True, eq=False)
class Kronecker:
    """scale * kron(first, second) (LoKr); each part is one matrix or a product of two."""

    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(a * b for a, b in zip(_size(self.first), _size(self.second), strict=True))

    @property
    def rank(self) -> int:
        return _inner(self.first) * _inner(self.second)

    def deltas(self, weight: Tensor, chunks: Sequence[slice], out: Tensor) -> Iterator[Tensor]:
        first, second = (_product(part, weight.device) for part in (self.first, self.second))
        first = first * self.scale
        for rows in chunks:
            index = torch.arange(rows.start, rows.stop, device=weight.device)
            left, right = first[index // len(second)], second[index % len(second)]
            delta = out[: len(index)]  # (rows, in) = (rows, b * d)
            blocks = delta.view(len(index), left.shape[1], right.shape[1])
            torch.mul(left.unsqueeze(2), right.unsqueeze(1), out=blocks)
            yield delta

    def low_rank(self) -> tuple[Tensor, Tensor]:
        (up1, down1), (up2, down2) = _factors(self.first), _factors(self.second)
        return torch.kron(down1, down2), torch.kron(up1 * self.scale, up2)


@dataclass(frozen=True, eq=False)
class FullDelta:
    """A stored difference of a whole tensor, weight or bias."""

    difference: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.difference.shape)

    @property
    def rank(self) -> None:
        return None

    def deltas(self, weight: Tensor, chunks: Sequence[slice], out: Tensor) -> Iterator[Tensor]:  # noqa: ARG002
        for rows in chunks:
            stored = self.difference[rows]
            yield out[: len(stored)].copy_(stored)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        up, down = _factors((self.difference,))
        return down, up


@dataclass(frozen=True, eq=False)
class Dora:
    """magnitude * (W + D) / norm - W, with D of the `inner` adapter.

    `norm` is "merged_rows" (PEFT: rows of W + D), "original_rows" (ComfyUI's `dora_scale`
    [out, 1]: rows of W) or "merged_columns" (`dora_scale` [1, in]: columns of W + D).
    """

    inner: LowRank | Kronecker
    magnitude: Tensor
    norm: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    @property
    def rank(self) -> int:
        return self.inner.rank

    def deltas(self, weight: Tensor, chunks: Sequence[slice], out: Tensor) -> Iterator[Tensor]:
        magnitude = self.magnitude.to(weight.device, torch.float32)
        by_column = self.norm == "merged_columns"
        magnitude = magnitude.reshape(1, -1) if by_column else magnitude.reshape(-1, 1)
        columns = self._column_norm(weight) if by_column else None
        for rows, delta in zip(chunks, self.inner.deltas(weight, chunks, out), strict=True):
            original = weight[rows].float()
            merged = delta.add_(original)
            norm = columns if by_column else self._row_norm(original, merged)
            yield merged.mul_(magnitude if by_column else magnitude[rows]).div_(norm).sub_(original)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        raise MismatchError(NOT_BESIDE)

    def _row_norm(self, original: Tensor, merged: Tensor) -> Tensor:
        if self.norm == "merged_rows":
            return merged.norm(dim=1, keepdim=True)
        return original.norm(dim=1, keepdim=True) + torch.finfo(torch.float32).eps

    def _column_norm(self, weight: Tensor) -> Tensor:
        # The same chunks on every device: their size shows in the last bit of the sums.
        chunks = _row_chunks(weight, _DEVICE_CHUNK)
        out = _buffer(weight, chunks)
        squares = torch.zeros(1, weight.shape[1], device=weight.device)
        for rows, delta in zip(chunks, self.inner.deltas(weight, chunks, out), strict=True):
            squares += delta.add_(weight[rows].float()).square_().sum(0, keepdim=True)
        return squares.sqrt() + torch.finfo(torch.float32).eps


def with_tensors(part: T, given: Callable[[Tensor], Tensor]) -> T:
    """An adapter, or a part of one, with every tensor in it replaced by `given(tensor)`."""
    if isinstance(part, Tensor):
        return given(part)
    if isinstance(part, tuple):
        return tuple(with_tensors(item, given) for item in part)
    if is_dataclass(part):
        inner = {f.name: with_tensors(getattr(part, f.name), given) for f in fields(part)}
        return replace(part, **inner)
    return part


def tensors_of(part: object) -> list[Tensor]:
    """The tensors in an adapter, in the order in which `with_tensors` replaces them."""
    found: list[Tensor] = []
    with_tensors(part, lambda tensor: found.append(tensor) or tensor)
    return found


@torch.no_grad()
def fuse(
    weight: Tensor, adapters: Sequence[tuple[Adapter, float]], out: Tensor | None = None
) -> Tensor:
    """`weight` + sum of strength * delta in float32, rounded once to the dtype of `weight`.

    Returns `out`, which may be `weight` itself: no row is read after it was written.
    """
    chunks = _row_chunks(weight, _CHUNK if weight.device.type == "cpu" else _DEVICE_CHUNK)
    fused = torch.empty_like(weight) if out is None else out
    # Two buffers for the whole call: fresh memory per chunk costs more than the arithmetic.
    total, scratch = _buffer(weight, chunks), _buffer(weight, chunks)
    with _exact_products(weight.device):
        streams = [adapter.deltas(weight, chunks, scratch) for adapter, _ in adapters]
        for rows in chunks:
            part = weight[rows]
            sum_ = total[: len(part)].copy_(part)
            for stream, (_, strength) in zip(streams, adapters, strict=True):
                sum_.add_(next(stream), alpha=strength)
            fused[rows] = sum_  # the one rounding
    return fused


def stack(
    adapters: Sequence[tuple[Adapter, float]], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """All adapters of one linear as a single pair (down, up) with the strengths in `up`.

    Stored factors that need no arithmetic stay views of their file.
    """
    downs, ups = [], []
    for adapter, strength in adapters:
        down, up = adapter.low_rank()
        downs.append(down)
        ups.append(up if strength == 1 else up.float() * strength)
    if len(adapters) == 1:
        return downs[0].to(dtype), ups[0].to(dtype)
    return torch.cat(downs).to(dtype), torch.cat(ups, dim=1).to(dtype)


def _row_chunks(weight: Tensor, size: int) -> list[slice]:
    """Runs of rows of about `size` bytes in float32."""
    width = max(1, weight[:1].numel())
    step = max(_LEAST_ROWS, size // (4 * width))
    return [slice(i, min(i + step, len(weight))) for i in range(0, len(weight), step)]


def _buffer(weight: Tensor, chunks: Sequence[slice]) -> Tensor:
    """Room for any one of the `chunks` of `weight` in float32."""
    rows = chunks[0].stop if chunks else 0
    return torch.empty((rows, *weight.shape[1:]), dtype=torch.float32, device=weight.device)


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """float32 products in full precision, whatever the host chose: TF32 loses 13 bits."""
    matmul = torch.backends.cuda.matmul
    if device.type != "cuda" or getattr(matmul, "fp32_precision", "tf32") != "tf32":
        yield
        return
    # torch 2.9 brought the second switch. The first one sets both; whoever reads one of them,
    # torch's own products included, may raise while they differ.
    try:
        read, set_ = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
        before, exact = read(), "highest"
    except RuntimeError:  # only the second one was set
        set_, before, exact = partial(setattr, matmul, "fp32_precision"), "tf32", "ieee"
    set_(exact)
    try:
        yield
    finally:
        set_(before)


def _size(part: tuple[Tensor, ...]) -> tuple[int, int]:
    return part[0].shape[0], part[-1].shape[1]


def _inner(part: tuple[Tensor, ...]) -> int:
    return part[0].shape[1] if len(part) == 2 else min(part[0].shape)


def _operand(factor: Tensor, device: torch.device) -> Tensor:
    """float32 in memory of its own: how a factor is aligned may show in the last bit of a product.

    Moved as it is stored, because that is half of the bytes.
    """
    return factor.to(device).to(torch.float32, copy=True)


def _product(part: tuple[Tensor, ...], device: torch.device) -> Tensor:
    factors = [_operand(t, device) for t in part]
    return factors[0] if len(factors) == 1 else factors[0] @ factors[1]


def _factors(part: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """(left, right) with left @ right = the part; the identity completes a single matrix."""
    if len(part) == 2:
        return part[0].float(), part[1].float()
    matrix = part[0].float()
    identity = torch.eye(min(matrix.shape), device=matrix.device)
    wide = matrix.shape[0] <= matrix.shape[1]
    return (identity, matrix) if wide else (matrix, identity)
