"""Pictures to a given sound track, in two stages with an undistilled checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import MismatchError
from ..sampling.denoise import Contexts
from ..sampling.guidance import Guidance
from ..sampling.presets import preset
from ..types import AVLatent, Streams
from .guides import AudioTrackGuide, Guide
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
from .stage import Stage


def audio_to_video(
    run: Run,
    clip: AVLatent,
    contexts: Contexts,
    guides: Sequence[Guide],
    distilled: Lora,
    settings: Settings = DEFAULTS,
) -> AVLatent:
    """Latents of a clip; play it with the waveform of its `AudioTrackGuide`, not with the latent.

    The sound is frozen in both stages: nothing guides it and it has no negative prompt.
    """
    if not any(isinstance(guide, AudioTrackGuide) for guide in guides):
        raise MismatchError("audio to video needs the sound that it is for; add an AudioTrackGuide")
    clip = checked(run, clip, two_stage=True)
    noise = run.begin()
    start = condition(run, halved(clip), guides)
    stage = guided(contexts, settings, preset(clip.version))
    half = sample(run, "stage1", start, for_given_sound(stage), noise, settings.loras)

    start = condition(run, upscale(run, half), guides)
    loras = (*settings.loras, distilled)
    return sample(run, "stage2", start, refining(contexts, settings), noise, loras)


def for_given_sound(stage: Stage) -> Stage:
    """The same stage with nothing that guides the sound: neutral strengths, no negative prompt."""
    contexts = stage.contexts
    negative = Streams(video=contexts.of("video", "negative"))
    return replace(
        stage,
        contexts=Contexts(contexts.positive, negative),
        guidance=Streams(stage.guidance.video, Guidance()),
    )
