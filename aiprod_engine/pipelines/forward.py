"""The transformer as a stage's denoiser calls it: in the way that memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..memory.placed import Placed
from ..memory.plan import Way
from ..models.transformer import Transformer
from ..types import Modality, Perturbation, Streams

_TOKENS_PER_LEVEL = 4  # a noise level is worth a row of its own from so many tokens on

Forward = Callable[
    [Modality | None, Modality | None, Sequence[Sequence[Perturbation]]],
    tuple[Tensor | None, Tensor | None],
]


@dataclass(frozen=True)
class SamplingWay(Way):
    """How the transformer runs: `passes` of guidance in a call, feed-forwards in `parts`."""

    passes: int = 1
    parts: int = 1

    @classmethod
    def of(cls, placed: Placed | None) -> SamplingWay | None:
        """The present way of a phase, None where none was planned."""
        return placed.way if placed is not None and isinstance(placed.way, cls) else None


@dataclass(frozen=True)
class NoiseLevels:
    """The few noise levels of a stream: `first` (n,) a token of each, `index` (B, T) every token's.

    Both None: too many. Modulation is computed once per level instead of once per token, as which
    it would take more memory than all else together.
    """

    first: Tensor | None = None
    index: Tensor | None = None

    @classmethod
    def of(cls, mask: Tensor) -> NoiseLevels:
        """The levels of a mask (B, T, 1), by which every level of a schedule is multiplied."""
        values, index = mask[..., 0].unique(return_inverse=True)
        if len(values) > max(1, index.shape[1] // _TOKENS_PER_LEVEL):
            return cls()
        places = torch.arange(index.numel(), device=mask.device)
        return cls(places.new_zeros(len(values)).scatter(0, index.flatten(), places), index)

    @property
    def count(self) -> int | None:
        """How many there are, None for too many."""
        return None if self.first is None else len(self.first)

    def compact(self, modality: Modality) -> Modality:
        """The same input, any number of copies of the batch, with one timestep per level."""
        if self.first is None:
            return modality
        rows = len(modality.tokens)
        timesteps = modality.timesteps.flatten(0, 1)[self.first].expand(rows, -1, -1)
        if self.count == 1:
            return replace(modality, timesteps=timesteps)
        levels = self.index.repeat(rows // len(self.index), 1)
        return replace(modality, timesteps=timesteps, levels=levels)


def forward_of(
    model: Transformer,
    states: Streams,
    placed: Placed | None = None,
    on_block: Callable[[int], None] | None = None,
) -> Forward:
    """`model` for states with these masks; a forward that runs out of memory is run again.

    Samples go through it in the order of the batch, as many together as the way of `placed` says.
    """
    levels = states.map(lambda state: NoiseLevels.of(state.denoise_mask))
    samples = len(next(s for s in (states.video, states.audio) if s is not None).latent)

    def forward(video, audio, perturbations):
        sides = (
            side if side is None else getattr(levels, name).compact(side)
            for name, side in (("video", video), ("audio", audio))
        )
        whole = _Batch(*sides, perturbations)

        def evaluate() -> tuple[Tensor | None, Tensor | None]:
            way = SamplingWay.of(placed)
            size = len(perturbations) if way is None else way.passes * samples
            parts = 1 if way is None else way.parts
            done = [model(*one.inputs, on_block, parts) for one in whole.split(size)]
            sides = zip(*done, strict=True)
            return tuple(None if side[0] is None else torch.cat(side) for side in sides)

        return evaluate() if placed is None else placed.attempt(evaluate)

    return forward


@dataclass(frozen=True)
class _Batch:
    """Samples of one forward; each has a list of perturbations."""

    video: Modality | None
    audio: Modality | None
    perturbations: Sequence[Sequence[Perturbation]]

    @property
    def inputs(self) -> tuple:
        return self.video, self.audio, self.perturbations

    def split(self, size: int) -> list[_Batch]:
        """Batches of up to `size` samples."""
        starts = range(0, len(self.perturbations), size)
        if len(starts) == 1:
            return [self]
        return [self._rows(slice(start, start + size)) for start in starts]

    def _rows(self, rows: slice) -> _Batch:
        sides = (side if side is None else _rows(side, rows) for side in (self.video, self.audio))
        return _Batch(*sides, self.perturbations[rows])


def _rows(modality: Modality, rows: slice) -> Modality:
    """The input of some samples; every tensor of it has one row per sample."""
    values = {field.name: getattr(modality, field.name) for field in fields(modality)}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return replace(modality, **{name: tensor[rows] for name, tensor in tensors.items()})
