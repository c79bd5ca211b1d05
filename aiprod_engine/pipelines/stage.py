"""One sampling stage: a clip's latents, conditioned and noised, run through a sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import timing
from ..errors import MismatchError
from ..latents.conditioning import Conditioning, apply_all
from ..latents.patchify import unpatchify_audio, unpatchify_video
from ..latents.positions import VideoGrid
from ..latents.state import audio_state, clear_conditioning, video_state
from ..memory.placed import Placed
from ..models.transformer import Transformer, TransformerConfig
from ..sampling.denoise import Contexts, GuidedDenoiser
from ..sampling.guidance import Guidance, GuidanceSchedule
from ..sampling.noise import noise_streams
from ..types import AVLatent, Streams, TokenState
from .forward import forward_of
from .samplers import NEEDS_UNCOND, SAMPLERS, Noise

LATENT_BINS = 16  # 64 mel bands, compressed by 4: every release
PUBLISHED_LAYERS = 48  # depth of the transformer in 2.0, 2.3 and 2.5

Tell = Callable[[str, Any], None]


def silent(event: str, value: Any) -> None:
    """The listener that does nothing."""


@dataclass(frozen=True)
class Start:
    """What a stage starts from: a clip's latents (absent ones are empty) and their conditioning.

    `frozen` names streams that are given, not generated. Items are applied in their order.
    """

    latent: AVLatent
    video_items: tuple[Conditioning, ...] = ()
    audio_items: tuple[Conditioning, ...] = ()
    frozen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Stage:
    """How one stage samples.

    `sigmas` (n + 1) float32 ending in 0; `noise_scale` is the level the stage starts from, its
    first sigma where an existing latent is refined. `guidance` holds strengths per stream, none:
    one evaluation a step. `batch_passes` is how many guidance passes share one forward; `options`
    go to the sampler.
    """

    contexts: Contexts
    sigmas: Tensor
    guidance: Streams = Streams()
    sampler: str = "euler"
    noise_scale: float = 1.0
    batch_passes: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise MismatchError(
                f"the sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}"
            )


@torch.inference_mode()
def run_stage(
    model: Transformer,
    start: Start,
    stage: Stage,
    noise: Noise,
    tell: Tell = silent,
    on_block: Callable[[int], None] | None = None,
    placed: Placed | None = None,
) -> AVLatent:
    """The clip's latents after the stage, float32 on the CPU, conditioning cleared.

    `tell` hears "start", "stage", "states" (noised), "step" (StepInfo) and "latent"; `on_block`
    runs before every block; both may raise to cancel. Each forward runs in the way of `placed`.
    """
    tell("start", start)
    tell("stage", stage)
    states = placed_states(model, start)
    states = noise_streams(states, stage.noise_scale, noise.initial)
    tell("states", states)
    denoise = denoiser(model, states, stage, on_block, placed)
    sampler = partial(SAMPLERS[stage.sampler], **stage.options)
    states = sampler(
        denoise,
        states,
        stage.sigmas,
        noise=noise.steps(stage.sampler),
        on_step=lambda info: tell("step", info),
    )
    latent = finished(states, start.latent)
    tell("latent", latent)
    return latent


def placed_states(model: Transformer, start: Start) -> Streams:
    """The initial states on the device of the model."""
    device, _ = _home(model)
    return initial_states(model.config, start).map(lambda state: _to(state, device))


def denoiser(
    model: Transformer,
    states: Streams,
    stage: Stage,
    on_block: Callable[[int], None] | None = None,
    placed: Placed | None = None,
) -> GuidedDenoiser:
    """The guided x0 of one run, for states with these masks."""
    device, dtype = _home(model)
    return GuidedDenoiser(
        forward_of(model, states, placed, on_block),
        contexts_on(stage.contexts, device),
        at_depth(stage.guidance, model.config.num_layers),
        dtype=dtype,
        batch_passes=stage.batch_passes,
        force_uncond=stage.sampler in NEEDS_UNCOND,
    )


def initial_states(config: TransformerConfig, start: Start) -> Streams:
    """Token states before noise: given or empty latents, then the conditioning items."""
    latent = start.latent
    streams = [s for s in ("video", "audio") if _has(latent, s) and s in config_streams(config)]
    if not streams:
        raise MismatchError(
            f"the latent asks for {latent.modalities}, the transformer makes {config.modalities} "
            "only; choose another transformer"
        )
    for name in start.frozen & set(streams):
        if getattr(latent, name) is None:
            raise MismatchError(f"a frozen {name} stream must be given; encode it into the latent")
    return Streams(
        _video_state(config, start) if "video" in streams else None,
        _audio_state(config, start) if "audio" in streams else None,
    )


def _has(latent: AVLatent, stream: str) -> bool:
    return latent.modalities in ("av", stream)


def config_streams(config: TransformerConfig) -> tuple[str, ...]:
    """Names of the streams that a transformer has."""
    return tuple(stream.name for stream in config.streams)


def grid_of(latent: AVLatent) -> VideoGrid:
    """Latent grid of a clip."""
    return VideoGrid.of_pixels(latent.frames, latent.height, latent.width, latent.fps)


def _video_state(config: TransformerConfig, start: Start) -> TokenState:
    grid, given = grid_of(start.latent), start.latent.video
    content = grid.zeros(1, config.in_channels) if given is None else given.float()
    state = video_state(content, grid.fps, frozen="video" in start.frozen)
    return apply_all(state, start.video_items, grid)


def _audio_state(config: TransformerConfig, start: Start) -> TokenState:
    content = start.latent.audio
    if content is None:
        count = timing.audio_latents(start.latent.frames, start.latent.fps)
        content = torch.zeros(1, config.audio_in_channels // LATENT_BINS, count, LATENT_BINS)
    state = audio_state(content.float(), frozen="audio" in start.frozen)
    return apply_all(state, start.audio_items)


def finished(states: Streams, latent: AVLatent) -> AVLatent:
    """Latents of the final states in the clip they belong to."""
    cleared = states.map(clear_conditioning)
    video, audio, grid = latent.video, latent.audio, grid_of(latent)
    if cleared.video is not None:
        tokens = cleared.video.latent.cpu()
        video = unpatchify_video(tokens, grid.frames, grid.height, grid.width)
    if cleared.audio is not None:
        tokens = cleared.audio.latent.cpu()
        audio = unpatchify_audio(tokens, tokens.shape[-1] // LATENT_BINS, LATENT_BINS)
    return replace(latent, video=video, audio=audio)


def contexts_on(contexts: Contexts, device: torch.device) -> Contexts:
    """The same contexts on another device."""

    def move(side):
        if side is None:
            return None
        found = (getattr(side, name) for name in ("video", "audio"))
        return Streams(*(None if context is None else context.to(device) for context in found))

    return Contexts(move(contexts.positive), move(contexts.negative))


def at_depth(guidance: Streams, layers: int) -> Streams:
    """The same guidance with STG blocks that this transformer has (see `stg_blocks`)."""

    def one(strengths: Guidance | GuidanceSchedule) -> Guidance | GuidanceSchedule:
        if isinstance(strengths, GuidanceSchedule):
            return GuidanceSchedule({bound: one(g) for bound, g in strengths.bins.items()})
        if strengths.stg_blocks is None:
            return strengths
        return replace(strengths, stg_blocks=stg_blocks(strengths.stg_blocks, layers))

    return guidance.map(one)


def stg_blocks(
    preset: Sequence[int], layers: int, published: int = PUBLISHED_LAYERS
) -> tuple[int, ...]:
    """The preset's blocks, or those at the same depth where the transformer is shallower."""
    return tuple(b if b < layers else b * layers // published for b in preset)


def _home(model: Transformer) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the model's input; a bias is stored plainly in every format."""
    entry = model.get_submodule(model.config.streams[0].prefix + "patchify_proj")
    return entry.bias.device, entry.bias.dtype


def _to(state: TokenState, device: torch.device) -> TokenState:
    names = ("latent", "denoise_mask", "clean_latent", "positions", "attention_mask",
             "keyframes_mask")  # fmt: skip
    present = {name: getattr(state, name) for name in names}
    return replace(state, **{k: v.to(device) for k, v in present.items() if v is not None})
