"""Sampler loops: plain functions from noised token states to denoised ones.

All share one signature: `loop(denoise, states, sigmas, *, noise=None, on_step=ignore, **options)`.
`denoise(states, sigma, step)` returns the guided x0 per stream, not yet blended. States keep their
dtype; the arithmetic is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import MismatchError, NonFiniteError
from ..types import Streams, TokenState
from .noise import NoiseSource, draw
from .steps import (
    Weights,
    ancestral_weights,
    cfg_pp_weights,
    euler_step,
    heun_step,
    velocity,
)

Denoiser = Callable[[Streams, float, int], Streams]


@dataclass(frozen=True)
class Prediction(Streams):
    """Guided x0 per stream; `uncond` holds the x0 of the unconditional pass where one was run."""

    uncond: Streams | None = None


@dataclass(frozen=True)
class StepInfo:
    """What a finished step tells: its index of `count`, its sigma, the blended x0 per stream."""

    index: int
    count: int
    sigma: float
    denoised: Streams


StepCallback = Callable[[StepInfo], None]


def ignore(info: StepInfo) -> None:
    """The callback that does nothing."""


def blend(x0: Tensor, state: TokenState) -> Tensor:
    """Return the prediction where the mask is 1, the clean latent where it is 0."""
    mask = state.denoise_mask
    return (x0 * mask + state.clean_latent.float() * (1 - mask)).to(x0.dtype)


def advance(states: Streams, latents: Streams, step: int) -> Streams:
    """Return the states with new latents; a latent that is not finite ends the run."""
    for name in ("video", "audio"):
        latent = getattr(latents, name)
        # A sum keeps every NaN and infinity: one reduction, one number to wait for.
        if latent is not None and not torch.isfinite(latent.sum(dtype=torch.float32)):
            raise NonFiniteError(
                f"the {name} latent is not finite after step {step + 1}; "
                "try another precision, attention backend or lower LoRA strengths"
            )
    return states.map(lambda s, x: replace(s, latent=x.to(s.latent.dtype)), latents)


def intervals(sigmas: Tensor) -> Iterator[tuple[int, float, float]]:
    """Yield (step, sigma, sigma_next); the schedule leaves its device once, before the loop."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        yield step, sigma, sigma_next


def blend_float32(x0: Tensor, state: TokenState) -> Tensor:
    """Return `blend` in float32, as loops that add noise need it."""
    return blend(x0.float(), state)


def _euler_to(states: Streams, denoised: Streams, sigma: float, sigma_next: float) -> Streams:
    return states.map(lambda s, x0: euler_step(s.latent, x0, sigma, sigma_next), denoised)


@torch.no_grad()
def euler(
    denoise: Denoiser,
    states: Streams,
    sigmas: Tensor,
    *,
    noise: NoiseSource | None = None,  # noqa: ARG001 - every loop is called the same way
    on_step: StepCallback = ignore,
) -> Streams:
    """First-order Euler in sigma; tokens with mask 0 keep their clean value."""
    for step, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(states, sigma, step).map(blend, states)
        states = advance(states, _euler_to(states, denoised, sigma, sigma_next), step)
        on_step(StepInfo(step, len(sigmas) - 1, sigma, denoised))
    return states


@torch.no_grad()
def heun(
    denoise: Denoiser,
    states: Streams,
    sigmas: Tensor,
    *,
    noise: NoiseSource | None = None,  # noqa: ARG001 - every loop is called the same way
    on_step: StepCallback = ignore,
) -> Streams:
    """Second-order Heun: two evaluations per step, one in the last; unknown to the reference."""
    for step, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(states, sigma, step).map(blend, states)
        latents = denoised
        if sigma_next > 0:
            ahead = advance(states, _euler_to(states, denoised, sigma, sigma_next), step)
            denoised_ahead = denoise(ahead, sigma_next, step).map(blend, ahead)
            latents = _heun_to(states, denoised, ahead, denoised_ahead, (sigma, sigma_next))
        states = advance(states, latents, step)
        on_step(StepInfo(step, len(sigmas) - 1, sigma, denoised))
    return states


def _heun_to(
    states: Streams,
    denoised: Streams,
    ahead: Streams,
    denoised_ahead: Streams,
    interval: tuple[float, float],
) -> Streams:
    def one(state: TokenState, x0: Tensor, state_ahead: TokenState, x0_ahead: Tensor) -> Tensor:
        return heun_step(state.latent, x0, state_ahead.latent, x0_ahead, *interval)

    return states.map(one, denoised, ahead, denoised_ahead)


@torch.no_grad()
def gradient_estimation(
    denoise: Denoiser,
    states: Streams,
    sigmas: Tensor,
    *,
    noise: NoiseSource | None = None,  # noqa: ARG001 - every loop is called the same way
    on_step: StepCallback = ignore,
    gamma: float = 2.0,
) -> Streams:
    """Euler along the velocity extrapolated from the last two; saves about a third of the steps."""
    previous = None
    for step, sigma, sigma_next in intervals(sigmas):
        denoised = latents = denoise(states, sigma, step).map(blend, states)
        if sigma_next > 0:
            velocities = _velocities(states, denoised, sigma)
            target = denoised
            if previous is not None:
                target = _extrapolated_x0(states, velocities, previous, sigma, gamma)
            latents = _euler_to(states, target, sigma, sigma_next)
            previous = velocities
        states = advance(states, latents, step)
        on_step(StepInfo(step, len(sigmas) - 1, sigma, denoised))
    return states


def _velocities(states: Streams, denoised: Streams, sigma: float) -> Streams:
    return states.map(lambda s, x0: velocity(s.latent, x0, sigma), denoised)


def _extrapolated_x0(
    states: Streams, velocities: Streams, previous: Streams, sigma: float, gamma: float
) -> Streams:
    def one(state: TokenState, v: Tensor, v_previous: Tensor) -> Tensor:
        estimate = v_previous.float() + gamma * (v.float() - v_previous.float())
        return (state.latent.float() - sigma * estimate).to(state.latent.dtype)

    return states.map(one, velocities, previous)


@torch.no_grad()
def euler_ancestral(
    denoise: Denoiser,
    states: Streams,
    sigmas: Tensor,
    *,
    noise: NoiseSource | None = None,
    on_step: StepCallback = ignore,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Streams:
    """Ancestral Euler of rectified flow: each step but the last replaces part of the noise."""
    for step, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(states, sigma, step).map(blend_float32, states)
        weights = ancestral_weights(sigma, sigma_next, eta, s_noise)
        fresh = draw(noise, states, f"step{step}") if eta > 0 and sigma_next > 0 else Streams()
        states = advance(states, _mix(weights, states, denoised, Streams(), fresh), step)
        on_step(StepInfo(step, len(sigmas) - 1, sigma, denoised))
    return states


@torch.no_grad()
def euler_cfg_pp(
    denoise: Denoiser,
    states: Streams,
    sigmas: Tensor,
    *,
    noise: NoiseSource | None = None,
    on_step: StepCallback = ignore,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Streams:
    """CFG++ Euler, ancestral unless `eta` is 0; `denoise` must return a `Prediction` with uncond.

    The unconditional x0 is blended like the guided one, so that kept tokens stay exactly clean.
    """
    noisy = eta > 0 and s_noise > 0
    for step, sigma, sigma_next in intervals(sigmas):
        prediction = denoise(states, sigma, step)
        if getattr(prediction, "uncond", None) is None:
            raise MismatchError(
                "CFG++ needs the unconditional prediction but the denoiser returned none; "
                "build the denoiser with force_uncond"
            )
        denoised = prediction.map(blend_float32, states)
        uncond = prediction.uncond.map(blend_float32, states)
        weights = cfg_pp_weights(sigma, sigma_next, eta, s_noise)
        fresh = draw(noise, states, f"step{step}") if noisy and sigma_next > 0 else Streams()
        states = advance(states, _mix(weights, states, denoised, uncond, fresh), step)
        on_step(StepInfo(step, len(sigmas) - 1, sigma, denoised))
    return states


def _mix(
    weights: Weights, states: Streams, denoised: Streams, uncond: Streams, fresh: Streams
) -> Streams:
    """Apply a stochastic step; where noise went in, kept tokens are made clean again."""

    def one(state: TokenState, x0: Tensor, x0_uncond: Tensor | None, eps: Tensor | None) -> Tensor:
        latent = weights.mix(state.latent, x0, x0_uncond, eps)
        return latent if eps is None else blend(latent, state)

    return states.map(one, denoised, uncond, fresh)
