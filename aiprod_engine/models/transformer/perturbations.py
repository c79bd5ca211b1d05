"""Perturbations: which samples keep which attention, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import MismatchError
from ...types import Perturbation

Keep = Tensor | bool
"""True: no sample is perturbed; False: all are; else (B, 1, 1), 1 = kept."""

_FIELDS = {
    "skip_video_self_attn": "video_self",
    "skip_audio_self_attn": "audio_self",
    "skip_a2v_cross_attn": "a2v",
    "skip_v2a_cross_attn": "v2a",
}


@dataclass(frozen=True)
class BlockKeep:
    """What one block keeps of its four attentions that can be perturbed."""

    video_self: Keep = True
    audio_self: Keep = True
    a2v: Keep = True
    v2a: Keep = True


def plan_keep(
    perturbations: Sequence[Sequence[Perturbation]] | None, blocks: int, like: Tensor
) -> list[BlockKeep]:
    """Return one BlockKeep per block; `perturbations` holds one list of records per sample.

    Records of a sample add up. `like` (B, ...) gives batch size, device and dtype.
    """
    if perturbations is None:
        return [BlockKeep()] * blocks
    _check(perturbations, like.shape[0])
    return [
        BlockKeep(**{f: _keep(perturbations, t, i, like) for t, f in _FIELDS.items()})
        for i in range(blocks)
    ]


def _keep(
    perturbations: Sequence[Sequence[Perturbation]], kind: str, block: int, like: Tensor
) -> Keep:
    kept = [
        not any(r["type"] == kind and _covers(r, block) for r in records)
        for records in perturbations
    ]
    if all(kept) or not any(kept):
        return kept[0]
    return torch.tensor(kept, device=like.device).to(like.dtype)[:, None, None]


def _covers(record: Perturbation, block: int) -> bool:
    blocks = record["blocks"]
    return blocks is None or block in blocks


def _check(perturbations: Sequence[Sequence[Perturbation]], batch: int) -> None:
    if len(perturbations) != batch:
        raise MismatchError(
            f"perturbations need one list per sample, found {len(perturbations)} for a batch of "
            f"{batch}"
        )
    for record in (r for records in perturbations for r in records):
        if record["type"] not in _FIELDS:
            raise MismatchError(
                f"a perturbation type must be one of {', '.join(_FIELDS)}, found {record['type']!r}"
            )
