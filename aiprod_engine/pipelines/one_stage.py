"""Text or images to a clip with sound, in one stage at full size: undistilled checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from ..sampling.denoise import Contexts
from ..sampling.presets import preset
from ..types import AVLatent
from .guides import Guide
from .run import DEFAULTS, Run, Settings, checked, condition, guided, sample


def one_stage(
    run: Run,
    clip: AVLatent,
    contexts: Contexts,
    guides: Sequence[Guide] = (),
    settings: Settings = DEFAULTS,
) -> AVLatent:
    """Latents of a clip from noise, with full guidance."""
    clip = checked(run, clip)
    noise = run.begin()
    start = condition(run, clip, guides)
    stage = guided(contexts, settings, preset(clip.version))
    return sample(run, "stage1", start, stage, noise, settings.loras)
