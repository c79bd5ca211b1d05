"""Two stages with a distilled checkpoint: eight steps at half size, three at full size."""

from __future__ import annotations

from collections.abc import Sequence

from ..sampling.denoise import Contexts
from ..sampling.presets import distilled_is_ancestral
from ..types import AVLatent
from .guides import Guide
from .run import (
    DEFAULTS,
    Run,
    Settings,
    checked,
    condition,
    halved,
    refining,
    sample,
    unguided,
    upscale,
)


def distilled(
    run: Run,
    clip: AVLatent,
    contexts: Contexts,
    guides: Sequence[Guide] = (),
    settings: Settings = DEFAULTS,
) -> AVLatent:
    """Latents of a clip; its sound is that of the second stage."""
    clip = checked(run, clip, two_stage=True)
    noise = run.begin()
    sampler = "euler_ancestral" if distilled_is_ancestral(clip.version) else "euler"
    start = condition(run, halved(clip), guides)
    stage = unguided(contexts, settings, sampler)
    half = sample(run, "stage1", start, stage, noise, settings.loras)

    start = condition(run, upscale(run, half), guides)
    return sample(run, "stage2", start, refining(contexts, settings), noise, settings.loras)
