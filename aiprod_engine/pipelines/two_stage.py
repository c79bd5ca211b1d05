"""Two stages with an undistilled checkpoint: half size with guidance, then full size refined.

The second stage takes the distilled LoRA and a few steps. Its sound is denoised along, because the
picture attends to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..sampling.denoise import Contexts
from ..sampling.presets import hq_preset, preset
from ..types import AVLatent
from .guides import Guide, ImageGuide
from .networks import Lora
from .run import (
    DEFAULTS,
    Run,
    Settings,
    checked,
    condition,
    guided,
    halved,
    refining,
    sample,
    upscale,
)
from .stage import grid_of

HQ_STRENGTHS = (0.25, 0.5)  # of the distilled LoRA in both stages of HQ, all versions


def two_stage(
    run: Run,
    clip: AVLatent,
    contexts: Contexts,
    guides: Sequence[Guide],
    distilled: Lora,
    settings: Settings = DEFAULTS,
) -> AVLatent:
    """Latents of a clip; its sound is that of the first stage."""
    clip = checked(run, clip, two_stage=True)
    noise = run.begin()
    start = condition(run, halved(clip), guides)
    stage = guided(contexts, settings, preset(clip.version))
    half = sample(run, "stage1", start, stage, noise, settings.loras)

    start = condition(run, upscale(run, half), guides)
    loras = (*settings.loras, distilled)
    full = sample(run, "stage2", start, refining(contexts, settings), noise, loras)
    return replace(full, audio=half.audio)


def two_stage_hq(
    run: Run,
    clip: AVLatent,
    contexts: Contexts,
    guides: Sequence[Guide],
    distilled: str | Path,
    settings: Settings = DEFAULTS,
) -> AVLatent:
    """As `two_stage`, with res_2s and the distilled LoRA in both stages."""
    clip = checked(run, clip, two_stage=True)
    noise = run.begin()
    first, second = ((*settings.loras, (distilled, strength)) for strength in HQ_STRENGTHS)
    start = condition(run, halved(clip), guides)
    grid = grid_of(halved(clip))
    tokens = grid.frames * grid.height * grid.width  # only this pipeline shifts by the real size
    stage = guided(contexts, settings, hq_preset(clip.version), tokens, "res_2s")
    half = sample(run, "stage1", start, stage, noise, first)

    start = condition(run, upscale(run, half), guides)
    stage = refining(contexts, settings, settings.sampler or "res_2s")
    full = sample(run, "stage2", start, stage, noise, second)
    return replace(full, audio=half.audio)


def keyframes(
    run: Run,
    clip: AVLatent,
    contexts: Contexts,
    guides: Sequence[Guide],
    distilled: Lora,
    settings: Settings = DEFAULTS,
) -> AVLatent:
    """Latents of a clip between images, all of which guide and none of which is a frame itself.

    Its sound is that of the second stage.
    """
    clip = checked(run, clip, two_stage=True)
    noise = run.begin()
    guides = [replace(g, policy="guiding") if isinstance(g, ImageGuide) else g for g in guides]
    start = condition(run, halved(clip), guides)
    stage = guided(contexts, settings, preset(clip.version))
    half = sample(run, "stage1", start, stage, noise, settings.loras)

    start = condition(run, upscale(run, half), guides)
    loras = (*settings.loras, distilled)
    return sample(run, "stage2", start, refining(contexts, settings), noise, loras)
