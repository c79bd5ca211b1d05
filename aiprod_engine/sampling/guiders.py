"""Guidance arithmetic on x0 predictions (B, N, C): float32, every reduction within one sample.

The deltas are to be added to the conditional prediction.
"""

from __future__ import annotations

from torch import Tensor

from .guidance import Apg, Guidance


def cfg_delta(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: 0 at scale 1."""
    return (scale - 1) * (cond - uncond)


def cfg_star_scale(cond: Tensor, uncond: Tensor) -> Tensor:
    """Return the factor (B, 1, 1) that projects cond onto uncond."""
    return _inner(cond, uncond) / (_inner(uncond, uncond) + 1e-8)


def cfg_star_delta(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """CFG against the optimally scaled unconditional prediction."""
    return (scale - 1) * (cond - cfg_star_scale(cond, uncond) * uncond)


def stg_delta(cond: Tensor, perturbed: Tensor, scale: float) -> Tensor:
    """Spatio-temporal guidance, away from the perturbed prediction: 0 at scale 0."""
    return scale * (cond - perturbed)


def apg_delta(
    cond: Tensor, uncond: Tensor, scale: float, rule: Apg, average: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the delta of projected guidance and the new running average.

    `average` is what the previous step of the same stream and run returned, None in the first; it
    only counts where the rule has momentum.
    """
    difference = cond - uncond
    if rule.momentum is not None and average is not None:
        difference = rule.momentum * average + difference
    average = difference
    if rule.norm_threshold > 0:
        norm = _inner(difference, difference).sqrt()
        difference = difference * (rule.norm_threshold / norm).clamp(max=1)
    parallel = _inner(difference, cond) / (_inner(cond, cond) + 1e-8) * cond
    projected = rule.eta * parallel + (difference - parallel)
    return (scale if rule.momentum is not None else scale - 1) * projected, average


def combine(
    guidance: Guidance, passes: dict[str, Tensor], average: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the guided x0 in the dtype of `passes["cond"]`, and the running average of APG.

    Other passes are "uncond", "perturbed", "isolated"; one that is missing, or not asked for by
    the strengths, contributes nothing. The rescale applies to the sum.
    """
    x0 = {name: value.float() for name, value in passes.items()}
    cond = guided = x0["cond"]
    if guidance.needs_uncond and "uncond" in x0:
        delta, average = _text_delta(guidance, cond, x0["uncond"], average)
        guided = guided + delta
    if guidance.needs_perturbed and "perturbed" in x0:
        guided = guided + stg_delta(cond, x0["perturbed"], guidance.stg)
    if guidance.needs_isolated and "isolated" in x0:
        guided = guided + cfg_delta(cond, x0["isolated"], guidance.modality)
    if guidance.rescale != 0:
        ratio = _std(cond) / _std(guided)
        guided = guided * (guidance.rescale * ratio + 1 - guidance.rescale)
    return guided.to(passes["cond"].dtype), average


def _text_delta(
    guidance: Guidance, cond: Tensor, uncond: Tensor, average: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    if isinstance(guidance.rule, Apg):
        return apg_delta(cond, uncond, guidance.cfg, guidance.rule, average)
    rule = cfg_star_delta if guidance.rule == "cfg_star" else cfg_delta
    return rule(cond, uncond, guidance.cfg), None


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample, (B, 1, 1)."""
    return (a * b).sum(dim=(-2, -1), keepdim=True)


def _std(x: Tensor) -> Tensor:
    """Unbiased deviation over all tokens and channels of each sample, (B, 1, 1)."""
    return x.std(dim=(-2, -1), keepdim=True)
