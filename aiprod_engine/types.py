"""Records that travel between the rooms of the engine. Immutable; no behaviour beyond mapping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor


@dataclass(frozen=True)
class Modality:
    """One stream's input of one transformer forward; axes as in the checkpoint specification.

    `tokens` (B, T, C) in model dtype; `sigma` (B,), `timesteps` (B, T, 1), `positions`
    (B, axes, T, 2) in float32; `context` (B, L, width); `context_mask` integer (B, L) with
    1 = attend, or additive float (B, 1, 1, L); `attention_mask` strengths in [0, 1], (B, T, T),
    row = query; `keyframes_mask` (B, T, 1), read by 2.5 only. A stream with `enabled` false is not
    updated but still serves as context for the other one. Where few noise levels occur, `timesteps`
    (B, n, 1) may hold each once and `levels` (B, T) the index of every token's.
    """

    tokens: Tensor
    sigma: Tensor
    timesteps: Tensor
    positions: Tensor
    context: Tensor
    context_mask: Tensor | None = None
    attention_mask: Tensor | None = None
    enabled: bool = True
    keyframes_mask: Tensor | None = None
    levels: Tensor | None = None


class Perturbation(TypedDict):
    """`type` names what is skipped, `blocks` where: None = all blocks, [] = none."""

    type: str
    blocks: Sequence[int] | None


@dataclass(frozen=True)
class SlotLayout:
    """Where generated keyframes lie: `count` slots of `height` x `width` tokens from `first` on."""

    first: int
    count: int
    height: int
    width: int


@dataclass(frozen=True)
class TokenState:
    """One stream while it is being sampled.

    `latent`, `clean_latent` (B, N, C); `denoise_mask` (B, N, 1) float32, 1 = generated, 0 = kept;
    `positions` (B, axes, N, 2) float32; `attention_mask` (B, N, N) strengths or None;
    `keyframes_mask` (B, N, 1) or None. The first `target_tokens` tokens are the result, what
    follows was appended by conditioning; `slots` says where generated keyframes (2.5) are there. A
    frozen stream is given, not generated.
    """

    latent: Tensor
    denoise_mask: Tensor
    clean_latent: Tensor
    positions: Tensor
    target_tokens: int
    attention_mask: Tensor | None = None
    keyframes_mask: Tensor | None = None
    frozen: bool = False
    slots: SlotLayout | None = None


@dataclass(frozen=True)
class Streams:
    """A value per stream; either side may be absent."""

    video: object | None = None
    audio: object | None = None

    def map(self, function: Callable, *others: Streams) -> Streams:
        """Apply `function` to each present stream together with the same stream of `others`."""

        def side(name: str):
            own = getattr(self, name)
            return None if own is None else function(own, *(getattr(o, name) for o in others))

        return Streams(side("video"), side("audio"))


@dataclass(frozen=True)
class TextContext:
    """One encoded prompt: `video` and `audio` contexts (B, L, width), after the connectors."""

    video: Tensor
    audio: Tensor
    version: str


@dataclass(frozen=True)
class NoiseState:
    """A seed and the state of its generator after all draws so far (uint8)."""

    seed: int
    state: Tensor


@dataclass(frozen=True)
class AVLatent:
    """Normalised latents of one clip and the one truth about its size and time.

    `video` (B, C, F, H, W) and `audio` (B, C, T, bins); None where nothing was generated or given
    yet. `modalities` says which streams the clip has: "av", "video" or "audio". `frames`,
    `height`, `width` in pixels; `fps` frames per second. `noise` is where the random numbers of the
    run stand, so that a later stage with the same seed goes on with them.
    """

    video: Tensor | None
    audio: Tensor | None
    frames: int
    height: int
    width: int
    fps: float
    version: str | None = None
    modalities: str = "av"
    noise: NoiseState | None = None
