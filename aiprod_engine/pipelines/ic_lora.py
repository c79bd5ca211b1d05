"""A clip that follows reference videos through an IC-LoRA: distilled checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from ..sampling.denoise import Contexts
from ..types import AVLatent
from .guides import Guide, ReferenceVideoGuide
from .run import Run, Settings, checked, condition, halved, refining, sample, unguided, upscale


def ic_lora(
    run: Run,
    clip: AVLatent,
    contexts: Contexts,
    guides: Sequence[Guide],
    settings: Settings,
    skips_stage_2: bool = False,
) -> AVLatent:
    """Latents of a clip; half the size without the second stage.

    `settings.loras` are the IC-LoRAs, whose metadata say how references lie in the clip. The second
    stage knows neither them nor the references.
    """
    clip = checked(run, clip, two_stage=True)
    noise = run.begin()
    reference = run.networks.reference(settings.loras)
    start = condition(run, halved(clip), guides, reference)
    stage = unguided(contexts, settings)
    half = sample(run, "stage1", start, stage, noise, settings.loras)
    if skips_stage_2:
        return half

    others = [guide for guide in guides if not isinstance(guide, ReferenceVideoGuide)]
    start = condition(run, upscale(run, half), others)
    return sample(run, "stage2", start, refining(contexts, settings), noise)
