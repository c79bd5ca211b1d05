"""Where random numbers come from, and how they enter a token state.

A noise source is a callable `(shape, stream, purpose) -> Tensor` that returns standard normal
noise on the CPU in token layout, appended tokens included. `stream` is "video" or "audio";
`purpose` is "initial", "step<i>" or "substep<i>". Callers draw video first, then audio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import MismatchError
from ..types import Streams, TokenState

NoiseSource = Callable[[tuple[int, ...], str, str], Tensor]

# Without an offset the first draw of an SDE loop would equal the initial noise.
_ANCESTRAL_OFFSET = 10_000
_SUBSTEP_OFFSET = 10_000


class CpuNoise:
    """One CPU float32 generator; draws depend on the seed and on the order of the calls only."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, shape: tuple[int, ...], stream: str, purpose: str) -> Tensor:  # noqa: ARG002
        return torch.randn(shape, generator=self.generator)


class WhitenedNoise:
    """Noise of res_2s: own generators for steps and substeps, every draw whitened.

    The reference's HQ pipeline never sets a seed, so -1 (hence 9999 for substeps) serves every run
    and both stages; it is the default here for the same results.
    """

    def __init__(self, seed: int = -1) -> None:
        self.steps = torch.Generator().manual_seed(seed)
        self.substeps = torch.Generator().manual_seed(seed + _SUBSTEP_OFFSET)

    def __call__(self, shape: tuple[int, ...], stream: str, purpose: str) -> Tensor:  # noqa: ARG002
        generator = self.substeps if purpose.startswith("substep") else self.steps
        return whiten(torch.randn(shape, generator=generator, dtype=torch.float64)).float()


def ancestral_noise(seed: int) -> CpuNoise:
    """Step noise of ancestral Euler in the distilled first stage (2.5) for a pipeline seed."""
    return CpuNoise(seed + _ANCESTRAL_OFFSET)


def temporal_tile_noise(seed: int, turn: int, tile: int) -> CpuNoise:
    """Step noise of one tile of a DFR temporal round; `turn` counts from 1, `tile` from 0."""
    return CpuNoise(seed + 1000 * turn + tile)


def whiten(noise: Tensor) -> Tensor:
    """Return `noise` (B, N, C) with mean 0 and deviation 1, first overall, then per sample."""
    noise = (noise - noise.mean()) / noise.std()
    mean = noise.mean(dim=(-2, -1), keepdim=True)
    return (noise - mean) / noise.std(dim=(-2, -1), keepdim=True)


def draw(
    noise: NoiseSource | None, states: Streams, purpose: str, dtype: torch.dtype | None = None
) -> Streams:
    """Draw for every present stream, frozen ones too, and move the noise to the latent's device.

    Without `dtype` it takes the dtype of the latent.
    """
    if noise is None:
        raise MismatchError(f"{purpose} draws noise but no source was given; pass one")

    def one(name: str, state: TokenState | None) -> Tensor | None:
        if state is None:
            return None
        drawn = noise(tuple(state.latent.shape), name, purpose)
        return drawn.to(state.latent.device, dtype or state.latent.dtype)

    return Streams(video=one("video", states.video), audio=one("audio", states.audio))


def noiser(state: TokenState, scale: float, noise: Tensor) -> TokenState:
    """Return the state noised to level `scale` where its mask is 1, clean where it is 0.

    The latent is the content to start from (scale below 1 keeps some of it), the clean latent the
    condition; both are separate, so a fractional mask mixes the condition with noised content.
    A frozen stream enters the loop clean.
    """
    scale = 0.0 if state.frozen else scale
    clean = state.clean_latent.float()
    base = (1 - scale) * state.latent.float() + scale * noise.float()
    latent = clean + state.denoise_mask * (base - clean)
    return replace(state, latent=latent.to(state.latent.dtype))


def noise_streams(states: Streams, scale: float, noise: NoiseSource) -> Streams:
    """Noise every present stream; each draws, whatever its scale, so that the order is fixed."""
    return states.map(lambda s, eps: noiser(s, scale, eps), draw(noise, states, "initial"))
