"""Guidance as data: strengths per stream, optionally by noise level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import MismatchError


@dataclass(frozen=True)
class Apg:
    """Projected guidance in place of plain CFG: the part parallel to cond counts `eta`.

    The difference is cut to `norm_threshold` (0: not at all). With `momentum`, even 0, it is a
    running average over the steps of a run and the scale counts w instead of w - 1.
    """

    eta: float = 1.0
    norm_threshold: float = 0.0
    momentum: float | None = None


@dataclass(frozen=True)
class Guidance:
    """Strengths of one stream: text (`cfg`), self-attention (`stg`) and cross-modal (`modality`).

    Neutral values: cfg 1, stg 0, modality 1, rescale 0. `stg_blocks` None perturbs all blocks.
    `skip_step` k runs one step in k + 1 and reuses its x0 in between. `rule` says how cond and
    uncond are contrasted.
    """

    cfg: float = 1.0
    stg: float = 0.0
    stg_blocks: tuple[int, ...] | None = ()
    rescale: float = 0.0
    modality: float = 1.0
    skip_step: int = 0
    rule: Literal["cfg", "cfg_star"] | Apg = "cfg"

    @property
    def is_momentum(self) -> bool:
        return isinstance(self.rule, Apg) and self.rule.momentum is not None

    @property
    def needs_uncond(self) -> bool:
        return not math.isclose(self.cfg, 0.0 if self.is_momentum else 1.0)

    @property
    def needs_perturbed(self) -> bool:
        return not math.isclose(self.stg, 0.0)

    @property
    def needs_isolated(self) -> bool:
        return not math.isclose(self.modality, 1.0)

    def skips(self, step: int) -> bool:
        """Whether the stream reuses its last x0 in this step (counted from 0)."""
        return self.skip_step > 0 and step % (self.skip_step + 1) != 0

    def at(self, sigma: float) -> Guidance:  # noqa: ARG002 - the same question as to a schedule
        """Return the strengths for a noise level: always these."""
        return self


@dataclass(frozen=True)
class GuidanceSchedule:
    """Guidance by noise level; each key is the upper bound (included) of its bin."""

    bins: Mapping[float, Guidance]

    def __post_init__(self) -> None:
        if not self.bins:
            raise MismatchError("a guidance schedule needs at least one bin, got none")

    def at(self, sigma: float) -> Guidance:
        """Return the bin with the smallest bound >= sigma; above all bounds, the largest."""
        # Sigmas went through float32, bounds did not: equal values may differ by a rounding.
        bounds = [b for b in self.bins if b >= sigma or math.isclose(b, sigma, rel_tol=1e-6)]
        return self.bins[min(bounds, default=max(self.bins))]
