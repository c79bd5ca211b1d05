"""One sampling stage: a clip's latents, conditioned and noised, run through a sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .. import timing
from ..errors import MismatchError
from ..latents.conditioning import Conditioning, apply_all
from ..latents.patchify import unpatchify_audio, unpatchify_video
from ..latents.positions import VideoGrid
from ..latents.state import audio_state, clear_conditioning, video_state
from ..models.transformer import Transformer
from ..sampling.denoise import Contexts, GuidedDenoiser
from ..sampling.loops import StepCallback, euler, heun, ignore
from ..sampling.noise import NoiseSource, noise_streams
from ..types import AVLatent, Streams, TokenState

LATENT_BINS = 16  # 64 mel bands, compressed by 4: every release

SAMPLERS = {"euler": euler, "heun": heun}


@dataclass(frozen=True)
class Stage:
    """How one stage samples.

    `sigmas` (n + 1) float32 ending in 0; `noise_scale` is the level the stage starts from, its
    first sigma where an existing latent is refined. `frozen` names streams that are given.
    `batch_passes` is how many guidance passes share one forward.
    """

    sigmas: Tensor
    sampler: str = "euler"
    noise_scale: float = 1.0
    frozen: frozenset[str] = frozenset()
    video_items: tuple[Conditioning, ...] = ()
    audio_items: tuple[Conditioning, ...] = ()
    batch_passes: int = 1
    options: dict = field(default_factory=dict)


@torch.inference_mode()
def run_stage(
    model: Transformer,
    contexts: Contexts,
    guidance: Streams,
    latent: AVLatent,
    stage: Stage,
    noise: NoiseSource,
    step_noise: NoiseSource | None = None,
    on_step: StepCallback = ignore,
    on_block: Callable[[int], None] | None = None,
) -> AVLatent:
    """The clip's latents after the stage, float32 on the CPU, conditioning cleared."""
    device, dtype = _home(model)
    states = initial_states(model, latent, stage)
    states = states.map(lambda state: _to(state, device))
    states = noise_streams(states, stage.noise_scale, noise)

    def forward(video, audio, perturbations):
        return model(video, audio, perturbations, on_block)

    denoise = GuidedDenoiser(
        forward,
        contexts_on(contexts, device),
        guidance,
        dtype=dtype,
        batch_passes=stage.batch_passes,
    )
    sampler = SAMPLERS[stage.sampler]
    states = sampler(
        denoise, states, stage.sigmas, noise=step_noise, on_step=on_step, **stage.options
    )
    return finished(states, latent)


def initial_states(model: Transformer, latent: AVLatent, stage: Stage) -> Streams:
    """Token states before noise: given or empty latents, then the conditioning items."""
    config = model.config
    wanted = latent.modalities
    video = audio = None
    if wanted in ("av", "video") and config.modalities in ("av", "video"):
        empty = latent.video is None
        grid = VideoGrid(
            timing.latent_frames(latent.frames),
            latent.height // timing.SPACE_FACTOR,
            latent.width // timing.SPACE_FACTOR,
            latent.fps,
        )
        content = grid.zeros(1, config.in_channels) if empty else latent.video.float()
        video = video_state(content, latent.fps, frozen="video" in stage.frozen)
        video = apply_all(video, stage.video_items, grid)
    if wanted in ("av", "audio") and config.modalities in ("av", "audio"):
        content = latent.audio
        if content is None:
            count = timing.audio_latents(latent.frames, latent.fps)
            content = torch.zeros(1, config.audio_in_channels // LATENT_BINS, count, LATENT_BINS)
        audio = audio_state(content.float(), frozen="audio" in stage.frozen)
        audio = apply_all(audio, stage.audio_items)
    if video is None and audio is None:
        raise MismatchError(
            f"the latent asks for {wanted}, the transformer makes {config.modalities} only; "
            "choose another transformer"
        )
    return Streams(video, audio)


def finished(states: Streams, latent: AVLatent) -> AVLatent:
    """Latents of the final states in the clip they belong to."""
    cleared = states.map(clear_conditioning)
    video, audio = latent.video, latent.audio
    if cleared.video is not None:
        video = unpatchify_video(
            cleared.video.latent.cpu(),
            timing.latent_frames(latent.frames),
            latent.height // timing.SPACE_FACTOR,
            latent.width // timing.SPACE_FACTOR,
        )
    if cleared.audio is not None:
        tokens = cleared.audio.latent.cpu()
        audio = unpatchify_audio(tokens, tokens.shape[-1] // LATENT_BINS, LATENT_BINS)
    return replace(latent, video=video, audio=audio)


def contexts_on(contexts: Contexts, device: torch.device) -> Contexts:
    """The same contexts on another device."""

    def move(side):
        if side is None:
            return None
        moved = (None if c is None else c.to(device) for c in (side.video, side.audio))
        return Streams(*moved)

    return Contexts(move(contexts.positive), move(contexts.negative))


def stg_blocks(preset: Sequence[int], layers: int, published: int = 48) -> tuple[int, ...]:
    """The preset's blocks, or those at the same depth where the transformer is shallower."""
    return tuple(b if b < layers else b * layers // published for b in preset)


def _home(model: Transformer) -> tuple[torch.device, torch.dtype]:
    bias = next(model.parameters())
    return bias.device, bias.dtype


def _to(state: TokenState, device: torch.device) -> TokenState:
    names = ("latent", "denoise_mask", "clean_latent", "positions", "attention_mask",
             "keyframes_mask")  # fmt: skip
    present = {name: getattr(state, name) for name in names}
    return replace(state, **{k: v.to(device) for k, v in present.items() if v is not None})
