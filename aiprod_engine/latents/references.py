"""Reference clips and voices: appended whole, in their own place in time and space."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..timing import AUDIO_LATENTS_PER_SECOND
from ..types import TokenState
from .patchify import patchify_audio, patchify_video
from .positions import VideoGrid, audio_positions, video_positions
from .rules import check_strength
from .state import append_kept


@dataclass(frozen=True)
class ReferenceLatent:
    """Appends an IC-LoRA reference (B, C, f, h, w).

    `downscale` is target size / reference size, `temporal_scale` target rate / reference rate.
    """

    latent: Tensor
    strength: float = 1.0
    downscale: int = 1
    temporal_scale: int = 1

    def apply(self, state: TokenState, grid: VideoGrid) -> TokenState:
        check_strength(self.strength)
        scale = self.temporal_scale
        positions = video_positions(*self.latent.shape[2:], grid.fps / scale, grid.factors).clone()
        if scale != 1:  # the last reference token then ends together with the target
            positions[:, 0] = (positions[:, 0] - (scale - 1) / grid.fps).clamp_min(0)
        positions[:, 1:] *= self.downscale
        return append_kept(state, patchify_video(self.latent), positions, self.strength)


@dataclass(frozen=True)
class ReferenceAudio:
    """Appends a reference voice (B, C, T, bins) to the audio stream.

    `before_target` (Dub-It) moves it to negative times, one latent short of 0; training-style
    references start at 0 like the target.
    """

    latent: Tensor
    strength: float = 1.0
    before_target: bool = True

    def apply(self, state: TokenState, grid: VideoGrid | None = None) -> TokenState:  # noqa: ARG002
        check_strength(self.strength)
        positions = audio_positions(self.latent.shape[2])
        if self.before_target:
            positions = positions - positions[..., -1:, 1:] - 1 / AUDIO_LATENTS_PER_SECOND
        return append_kept(state, patchify_audio(self.latent), positions, self.strength)
