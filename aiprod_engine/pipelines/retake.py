"""Part of a finished clip generated again; everything outside the window stays as it was."""

from __future__ import annotations

from ..sampling.denoise import Contexts
from ..sampling.presets import preset
from ..types import AVLatent
from .guides import RetakeGuide
from .run import DEFAULTS, Run, Settings, checked, condition, guided, sample, unguided


def retake(
    run: Run,
    fps: float,
    contexts: Contexts,
    source: RetakeGuide,
    settings: Settings = DEFAULTS,
    is_distilled: bool = True,
) -> AVLatent:
    """Latents of the clip, of the size and length of its source, with the window generated anew."""
    frames, height, width = source.frames.shape[:3]
    clip = checked(run, AVLatent(None, None, frames, height, width, fps))
    noise = run.begin()
    start = condition(run, clip, [source])
    if is_distilled:
        stage = unguided(contexts, settings)
    else:
        stage = guided(contexts, settings, preset(clip.version))
    return sample(run, "stage1", start, stage, noise, settings.loras)
