"""From a velocity network to the guided x0 that the loops ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import MismatchError
from ..types import Modality, Perturbation, Streams, TextContext, TokenState
from .guidance import Guidance
from .guiders import combine
from .loops import Prediction
from .passes import Pass, plan_passes

Model = Callable[
    [Modality | None, Modality | None, Sequence[Sequence[Perturbation]]],
    tuple[Tensor | None, Tensor | None],
]


_STREAMS = ("video", "audio")


def x0_from_velocity(x: Tensor, velocity: Tensor, timesteps: Tensor | float) -> Tensor:
    """Return x - velocity * timesteps, computed in float32, in the dtype of `x` (B, N, C).

    `timesteps` are those of the tokens, (B, N, 1): mask * sigma, not the sigma of the schedule.
    """
    return (x.float() - velocity.float() * timesteps).to(x.dtype)


@dataclass(frozen=True)
class Contexts:
    """Text contexts (1 or B, L, width) per stream; either negative may be absent."""

    positive: TextContext | Streams
    negative: TextContext | Streams | None = None

    def of(self, name: str, which: str) -> Tensor | None:
        """Return a stream's context, None where there is none."""
        return getattr(getattr(self, which), name, None)


@dataclass
class _Memory:
    """What one stream carries from step to step."""

    x0: Tensor
    uncond: Tensor | None
    average: Tensor | None


class GuidedDenoiser:
    """The `Denoiser` of one run: `denoiser(states, sigma, step)` returns the guided x0.

    `model(video, audio, perturbations)` returns the outputs of both streams, velocities unless
    `predicts` is "x0"; tokens and contexts go in as `dtype`, everything else stays float32.
    `guidance` holds a `Guidance` or `GuidanceSchedule` per stream; audio without one takes that of
    video; without any only the conditional pass runs. Up to `batch_passes` passes go into one call.
    Use a new instance for every run: skipped steps and APG read what earlier steps left behind.
    """

    def __init__(
        self,
        model: Model,
        contexts: Contexts,
        guidance: Streams | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        batch_passes: int = 1,
        force_uncond: bool = False,
        predicts: Literal["velocity", "x0"] = "velocity",
    ) -> None:
        if batch_passes < 1:
            raise MismatchError(f"batch_passes must be at least 1, got {batch_passes}")
        self.model = model
        self.contexts = contexts
        self.guidance = guidance or Streams()
        self.dtype = dtype
        self.batch_passes = batch_passes
        self.force_uncond = force_uncond
        self.predicts = predicts
        self._memory: dict[str, _Memory] = {}

    def __call__(self, states: Streams, sigma: float, step: int) -> Prediction:
        """Return the guided x0 (B, N, C) of every present stream, before the blend."""
        running = self._running(states, sigma, step)
        if running:
            passes = plan_passes(running.get("video"), running.get("audio"), self.force_uncond)
            self._check_negatives(running)
            results = self._evaluate(states, sigma, passes, enabled=frozenset(running))
            for name, guidance in running.items():
                x0s = {key: getattr(result, name) for key, result in results.items()}
                self._remember(name, guidance, x0s)
        names = [name for name in _STREAMS if getattr(states, name) is not None]
        uncond = {name: self._memory[name].uncond for name in names}
        return Prediction(
            **{name: self._memory[name].x0 for name in names},
            uncond=None if any(x is None for x in uncond.values()) else Streams(**uncond),
        )

    def _running(self, states: Streams, sigma: float, step: int) -> dict[str, Guidance]:
        """Guidance of the streams to compute in this step: those present and not skipped."""
        running = {}
        for name in _STREAMS:
            if getattr(states, name) is None:
                continue
            given = getattr(self.guidance, name) or self.guidance.video or Guidance()
            guidance = given.at(sigma)
            if name not in self._memory or not guidance.skips(step):
                running[name] = guidance
        return running

    def _check_negatives(self, running: dict[str, Guidance]) -> None:
        negatives = {n for n in _STREAMS if self.contexts.of(n, "negative") is not None}
        if self.force_uncond and not negatives:
            raise MismatchError("CFG++ needs a negative context, got none; encode one, even empty")
        for name, guidance in running.items():
            if guidance.needs_uncond and name not in negatives:
                raise MismatchError(
                    f"{name} cfg {guidance.cfg} needs a negative {name} context, got none; "
                    "encode a negative prompt or set cfg to 1"
                )

    def _evaluate(
        self, states: Streams, sigma: float, passes: Sequence[Pass], enabled: frozenset[str]
    ) -> dict[str, Streams]:
        """Run the passes; return both streams' x0 by pass name."""
        results = {}
        for chunk in self._chunks(passes):
            inputs = [self._modality(name, states, sigma, chunk, enabled) for name in _STREAMS]
            batch = next(len(m.tokens) for m in inputs if m is not None) // len(chunk)
            perturbations = [list(p.perturbations) for p in chunk for _ in range(batch)]
            outputs = Streams(*self.model(*inputs, perturbations))
            for index, one in enumerate(chunk):
                rows = slice(index * batch, (index + 1) * batch)
                results[one.name] = self._x0(states, outputs, rows, sigma)
        return results

    def _chunks(self, passes: Sequence[Pass]) -> Iterator[Sequence[Pass]]:
        for start in range(0, len(passes), self.batch_passes):
            yield passes[start : start + self.batch_passes]

    def _modality(
        self,
        name: str,
        states: Streams,
        sigma: float,
        chunk: Sequence[Pass],
        enabled: frozenset[str],
    ) -> Modality | None:
        """One stream's input: [pass 0 sample 0, pass 0 sample 1, .., pass 1 sample 0, ..]."""
        state = getattr(states, name)
        if state is None:
            return None
        count, level = len(chunk), _level(state, sigma)
        batch, device = len(state.latent), state.latent.device
        context = torch.cat([self._context(name, one, batch) for one in chunk])
        return Modality(
            tokens=_tiled(state.latent.to(self.dtype), count),
            sigma=torch.full((count * batch,), level, device=device),
            timesteps=_tiled(state.denoise_mask * level, count),
            positions=_tiled(state.positions, count),
            context=context.to(device, self.dtype),
            attention_mask=_tiled(state.attention_mask, count),
            enabled=name in enabled,
            keyframes_mask=_tiled(state.keyframes_mask, count),
        )

    def _context(self, name: str, one: Pass, batch: int) -> Tensor:
        """Return (B, L, width); a stream without a negative context uses its positive one."""
        positive = self.contexts.of(name, "positive")
        if positive is None:
            raise MismatchError(f"the {name} stream is present but has no {name} context; pass one")
        negative = self.contexts.of(name, "negative") if one.context == "negative" else None
        context = positive if negative is None else negative
        return context.expand(batch, -1, -1)

    def _x0(self, states: Streams, outputs: Streams, rows: slice, sigma: float) -> Streams:
        """Return the x0 of one pass, whose outputs are `rows` of the batch."""

        def one(state: TokenState, output: Tensor) -> Tensor:
            if self.predicts == "x0":
                return output[rows].to(state.latent.dtype)
            # From the exact latent, not the rounded tokens: kept tokens come back unchanged.
            timesteps = state.denoise_mask * _level(state, sigma)
            return x0_from_velocity(state.latent, output[rows], timesteps)

        return states.map(one, outputs)

    def _remember(self, name: str, guidance: Guidance, x0s: dict[str, Tensor]) -> None:
        before = self._memory.get(name)
        x0, average = combine(guidance, x0s, before.average if before else None)
        self._memory[name] = _Memory(x0, x0s.get("uncond"), average)


def _level(state: TokenState, sigma: float) -> float:
    """The noise level that the model sees; a frozen stream is clean at every step."""
    return 0.0 if state.frozen else sigma


def _tiled(tensor: Tensor | None, count: int) -> Tensor | None:
    """Repeat the batch `count` times; one copy is the tensor itself."""
    if tensor is None or count == 1:
        return tensor
    return tensor.repeat(count, *[1] * (tensor.dim() - 1))
