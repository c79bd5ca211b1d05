"""Which forward passes one guided evaluation needs, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..types import Perturbation
from .guidance import Guidance

_ISOLATED: tuple[Perturbation, ...] = (
    {"type": "skip_a2v_cross_attn", "blocks": None},
    {"type": "skip_v2a_cross_attn", "blocks": None},
)


@dataclass(frozen=True)
class Pass:
    """One forward of both streams: its context and what is switched off in every sample."""

    name: Literal["cond", "uncond", "perturbed", "isolated"]
    context: Literal["positive", "negative"] = "positive"
    perturbations: tuple[Perturbation, ...] = ()


def plan_passes(
    video: Guidance | None, audio: Guidance | None, force_uncond: bool = False
) -> tuple[Pass, ...]:
    """Return the passes in batch order; None stands for a stream that is absent or skipped.

    Every pass evaluates both streams; a stream that did not ask for it ignores the result.
    `force_uncond` runs the unconditional pass for CFG++ even where cfg is neutral.
    """
    streams = {"video": video, "audio": audio}
    present = {name: guidance for name, guidance in streams.items() if guidance is not None}
    passes = [Pass("cond")]
    if force_uncond or any(g.needs_uncond for g in present.values()):
        passes.append(Pass("uncond", context="negative"))
    perturbed = {name: g for name, g in present.items() if g.needs_perturbed}
    if perturbed:
        passes.append(Pass("perturbed", perturbations=_skip_self_attention(perturbed)))
    if any(g.needs_isolated for g in present.values()):
        passes.append(Pass("isolated", perturbations=_ISOLATED))
    return tuple(passes)


def _skip_self_attention(streams: dict[str, Guidance]) -> tuple[Perturbation, ...]:
    return tuple(
        {
            "type": f"skip_{name}_self_attn",
            "blocks": None if g.stg_blocks is None else list(g.stg_blocks),
        }
        for name, g in streams.items()
    )
