"""A clip spoken anew: reference picture and voice through a dubbing IC-LoRA (2.3, distilled)."""

from __future__ import annotations

from dataclasses import replace

from ..errors import MismatchError
from ..sampling.denoise import Contexts
from ..types import AVLatent
from .guides import ReferenceAudioGuide, ReferenceVideoGuide
from .run import Run, Settings, checked, condition, halved, refining, sample, unguided, upscale


def dub(
    run: Run,
    clip: AVLatent,
    contexts: Contexts,
    video: ReferenceVideoGuide,
    voice: ReferenceAudioGuide,
    settings: Settings,
) -> AVLatent:
    """Latents of a clip that shows `video` and speaks with `voice`; sound of the first stage."""
    if len(settings.loras) != 1:
        raise MismatchError(
            f"dubbing takes exactly one LoRA, the dubbing one, got {len(settings.loras)}"
        )
    clip = checked(run, clip, two_stage=True)
    noise = run.begin()
    reference = replace(run.networks.reference(settings.loras), temporal_factor=1)
    start = condition(run, halved(clip), [video, voice], reference)
    half = sample(run, "stage1", start, unguided(contexts, settings), noise, settings.loras)

    start = condition(run, upscale(run, half), [video, voice], reference)
    return sample(run, "stage2", start, refining(contexts, settings), noise, settings.loras)
