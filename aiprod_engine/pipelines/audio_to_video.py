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
from .run import Run, Settings, checked, condition, guided, halved, refining, sample, upscale


def audio_to_video(
    run: Run,
    clip: AVLatent,
    contexts: Contexts,
    guides: Sequence[Guide],
    distilled: Lora,
    settings: Settings = Settings(),
) -> AVLatent:
    """Latents of a clip; play it with the waveform of its `AudioTrackGuide`, not with the latent.

    The sound is frozen in both stages: nothing guides it and it has no negative prompt.
    """
    if not any(isinstance(guide, AudioTrackGuide) for guide in guides):
        raise MismatchError("audio to video needs the sound that it is for; add an AudioTrackGuide")
    clip = checked(run, clip, two_stage=True)
    noise = run.begin()
    contexts = Contexts(contexts.positive, Streams(video=contexts.of("video", "negative")))
    start = condition(run, halved(clip), guides)
    stage = guided(contexts, settings, preset(clip.version))
    stage = replace(stage, guidance=Streams(stage.guidance.video, Guidance()))
    half = sample(run, "stage1", start, stage, noise, settings.loras)

    start = condition(run, upscale(run, half), guides)
    loras = (*settings.loras, distilled)
    return sample(run, "stage2", start, refining(contexts, settings), noise, loras)
