"""Attention of every cell to a window of cells around it.

A window always counts the same cells: near a border it is shifted inward, not cut. Queries are
taken in tiles of neighbours; a tile attends to the union of its windows under a mask. Tiles whose
windows lie alike share one mask and one call. Tensors are (B, T, H, W, heads, d).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import DiffusionDecoderConfig, Size

_TILE, _GATHERED = DiffusionDecoderConfig.TILE, DiffusionDecoderConfig.GATHERED


@dataclass(frozen=True)
class Alike:
    """Tiles of one axis: `size` queries from each of `queries`, `reach` keys from each of `keys`.

    `starts`: first key of each query's window, counted from the tile's first key.
    """

    size: int
    reach: int
    starts: tuple[int, ...]
    queries: list[int]
    keys: list[int]


def tiles_of(length: int, window: int, size: int) -> list[Alike]:
    """Cut an axis into tiles of `size` (the last may be short); those that look alike together."""
    first_keys = [min(max(i - window // 2, 0), length - window) for i in range(length)]
    found: dict[tuple[int, ...], Alike] = {}
    for query in range(0, length, size):
        own = first_keys[query : query + size]
        starts = tuple(key - own[0] for key in own)
        reach = starts[-1] + window
        alike = found.setdefault(starts, Alike(len(own), reach, starts, [], []))
        alike.queries.append(query)
        alike.keys.append(own[0])
    return list(found.values())


def attend(q: Tensor, k: Tensor, v: Tensor, window: Size) -> Tensor:
    """Overwrite the scaled queries `q` with their attention, and return it."""
    grid = q.shape[1:4]
    flat = [x.flatten(1, 3) for x in (q, k, v)]  # (B, N, heads, d), views
    axes = (tiles_of(*sizes) for sizes in zip(grid, window, _TILE, strict=True))
    for alike in product(*axes):
        bias = _bias(alike, window, q)
        inner_queries = _indices([range(axis.size) for axis in alike], grid, q)
        inner_keys = _indices([range(axis.reach) for axis in alike], grid, q)
        together = max(1, _GATHERED // (len(inner_keys) * q[:, 0, 0, 0].numel()))
        corners = (
            _indices([axis.queries for axis in alike], grid, q).split(together),
            _indices([axis.keys for axis in alike], grid, q).split(together),
        )
        for queries, keys in zip(*corners, strict=True):
            _attend(*flat, queries[:, None] + inner_queries, keys[:, None] + inner_keys, bias)
    return q


def _attend(q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, bias: Tensor) -> None:
    """Attention of n tiles; flat indices of their queries (n, Q) and keys (n, K)."""
    taken = ((q, queries), (k, keys), (v, keys))
    # (B, n, Q, heads, d) -> (B n, heads, Q, d)
    tiles = (x[:, at].flatten(0, 1).transpose(1, 2) for x, at in taken)
    out = F.scaled_dot_product_attention(*tiles, attn_mask=bias, scale=1.0)
    q[:, queries] = out.transpose(1, 2).unflatten(0, (len(q), -1))


def _bias(alike: Sequence[Alike], window: Size, like: Tensor) -> Tensor:
    """0 inside a query's window, minus infinity elsewhere: (Q, K) of a tile."""
    masks = []
    for axis, side in zip(alike, window, strict=True):
        starts = torch.tensor(axis.starts, device=like.device)[:, None]
        keys = torch.arange(axis.reach, device=like.device)
        masks.append((keys >= starts) & (keys < starts + side))  # (queries, keys) of the axis
    t, h, w = masks
    inside = t[:, None, None, :, None, None] & h[:, None, None, :, None] & w[:, None, None, :]
    inside = inside.flatten(3).flatten(0, 2)  # (qt, qh, qw, kt, kh, kw) -> (Q, K)
    return like.new_zeros(inside.shape).masked_fill_(~inside, -torch.inf)


def _indices(axes: Sequence[Sequence[int]], grid: Sequence[int], like: Tensor) -> Tensor:
    """Flat indices of all combinations of positions along the three axes."""
    _, height, width = grid
    t, h, w = (torch.tensor(axis, device=like.device) for axis in axes)
    return ((t[:, None, None] * height + h[:, None]) * width + w).flatten()
