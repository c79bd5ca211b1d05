"""A clip sampled from outside: a foreign sampler carries its latents, the engine predicts x0.

Such a sampler knows no tokens. It holds latents (B, C, F, H, W) and (B, C, T, bins), a mask of
each, and asks for x0 at a noise level; what conditioning appends to the clip stays here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..latents.patchify import tokens_of, unpatchify_audio, unpatchify_video
from ..latents.positions import VideoGrid
from ..memory.placed import Placed
from ..models.transformer import Transformer, TransformerConfig
from ..sampling.loops import Prediction, advance
from ..sampling.noise import NoiseSource, draw, noiser
from ..types import Streams, TokenState
from .stage import (
    LATENT_BINS,
    Stage,
    Start,
    denoiser,
    grid_of,
    initial_states,
    placed_states,
)


def carried(config: TransformerConfig, start: Start) -> tuple[Streams, Streams]:
    """What a foreign sampler is to carry: latents, and masks of which 1 is generated.

    Latents hold the clean content where the mask is below 1; masks are (B, 1, F, H, W) and
    (B, 1, T, 1).
    """
    states, grid = initial_states(config, start), grid_of(start.latent)
    contents = states.map(lambda s: torch.where(s.denoise_mask < 1, s.clean_latent, s.latent))
    masks = states.map(lambda s: s.denoise_mask)
    return (
        _on_grid(_of_clip(contents, states), grid),
        _on_grid(_of_clip(masks, states), grid, bins=1),
    )


class OutsideDenoiser:
    """x0 for a sampler that carries the latents of `start` and blends them by its own masks.

    `masks` are the sampler's, (B or 1, any, ...) on the grid of the latents; without one a stream
    is generated as a whole. A frozen stream stays what `start` gives, whatever is carried. Tokens
    that conditioning appended are, at every level, their clean content with as much of `noise` as
    their strength leaves. Use a new instance for every run.
    """

    def __init__(
        self,
        model: Transformer,
        start: Start,
        stage: Stage,
        noise: NoiseSource,
        *,
        masks: Streams | None = None,
        on_block: Callable[[int], None] | None = None,
        placed: Placed | None = None,
    ) -> None:
        self._grid = grid_of(start.latent)
        self._states = placed_states(model, start).map(_masked, masks or Streams())
        self._noise = draw(noise, self._states, "initial")
        self._denoise = denoiser(model, self._states, stage, on_block, placed)

    @torch.no_grad()
    def __call__(
        self, latents: Streams, sigma: float, step: int, needs_uncond: bool = False
    ) -> Prediction:
        """Guided x0 of the carried latents, before the blend; `uncond` where that pass was run."""

        def at_level(state: TokenState, noise: Tensor, latent: Tensor) -> TokenState:
            held = noiser(state, sigma, noise)
            if state.frozen:
                return held
            appended = held.latent[:, state.target_tokens :]
            return replace(held, latent=torch.cat((tokens_of(latent.float()), appended), dim=1))

        states = self._states.map(at_level, self._noise, latents)
        self._denoise.force_uncond = needs_uncond
        prediction = self._denoise(states, sigma, step)
        advance(states, prediction, step)  # raises unless all is finite
        x0, uncond = self._of_grid(prediction), prediction.uncond
        return Prediction(x0.video, x0.audio, None if uncond is None else self._of_grid(uncond))

    def _of_grid(self, tokens: Streams) -> Streams:
        return _on_grid(_of_clip(tokens, self._states), self._grid)


def _masked(state: TokenState, mask: Tensor | None) -> TokenState:
    """The state with the sampler's mask for the clip, and with clean content to be noised."""
    state = replace(state, latent=state.clean_latent)
    if state.frozen:
        return state
    own, appended = (
        state.denoise_mask[:, : state.target_tokens],
        state.denoise_mask[:, state.target_tokens :],
    )
    own = torch.ones_like(own) if mask is None else tokens_of(mask)[..., :1].to(own).expand_as(own)
    return replace(state, denoise_mask=torch.cat((own, appended), dim=1))


def _of_clip(tokens: Streams, states: Streams) -> Streams:
    """Tokens without those that conditioning appended."""
    return tokens.map(lambda x, state: x[:, : state.target_tokens], states)


def _on_grid(tokens: Streams, grid: VideoGrid, bins: int = LATENT_BINS) -> Streams:
    """Latents (B, C, F, H, W) and (B, C, T, bins) of tokens (B, N, C) and (B, T, C bins)."""
    video, audio = tokens.video, tokens.audio
    if video is not None:
        video = unpatchify_video(video, grid.frames, grid.height, grid.width)
    if audio is not None:
        audio = unpatchify_audio(audio, audio.shape[-1] // bins, bins)
    return Streams(video, audio)
