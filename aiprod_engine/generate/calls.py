"""How a checked request becomes one call of its pipeline."""

from __future__ import annotations

from collections.abc import Callable

from ..pipelines.audio_to_video import audio_to_video
from ..pipelines.distilled import distilled
from ..pipelines.dub import dub
from ..pipelines.extend import extend
from ..pipelines.guides import AudioTrackGuide, ReferenceAudioGuide
from ..pipelines.ic_lora import ic_lora
from ..pipelines.one_stage import one_stage
from ..pipelines.prompts import encode_prompts
from ..pipelines.retake import retake
from ..pipelines.run import Run
from ..pipelines.stage import Tell
from ..pipelines.text_to_audio import text_to_audio
from ..pipelines.two_stage import keyframes, two_stage, two_stage_hq
from ..sampling.denoise import Contexts
from ..types import AVLatent
from .request import Request


def sample(request: Request, tell: Tell) -> AVLatent:
    """Encode the prompts and run the pipeline."""
    contexts = Contexts(*encode_prompts(request.networks, request.texts))
    run = Run(request.networks, request.options.seed, tell=tell)
    return CALLS[request.options.pipeline](request, run, contexts)


CALLS: dict[str, Callable[[Request, Run, Contexts], AVLatent]] = {
    "one_stage": lambda r, run, texts: one_stage(run, r.clip, texts, r.images, r.settings),
    "two_stage": lambda r, run, texts: two_stage(
        run, r.clip, texts, r.images, r.distilled_lora[0], r.settings
    ),
    "two_stage_hq": lambda r, run, texts: two_stage_hq(
        run, r.clip, texts, r.images, r.distilled_lora[0][0], r.settings
    ),
    "distilled": lambda r, run, texts: distilled(run, r.clip, texts, r.images, r.settings),
    "keyframes": lambda r, run, texts: keyframes(
        run, r.clip, texts, r.images, r.distilled_lora[0], r.settings
    ),
    "ic_lora": lambda r, run, texts: ic_lora(
        run, r.clip, texts, [*r.images, r.reference], r.settings, r.options.skip_stage_2
    ),
    "audio_to_video": lambda r, run, texts: audio_to_video(
        run, r.clip, texts, [*r.images, AudioTrackGuide(r.sound)], r.distilled_lora[0], r.settings
    ),
    "retake": lambda r, run, texts: retake(
        run, r.clip.fps, texts, r.retaken, r.settings, not r.is_guided
    ),
    "text_to_audio": lambda r, run, texts: text_to_audio(
        run, r.clip.frames, r.clip.fps, texts, r.settings
    ),
    "dub": lambda r, run, texts: dub(
        run, r.clip, texts, r.reference, ReferenceAudioGuide(r.sound), r.settings
    ),
    "extend": lambda r, run, texts: extend(
        run, r.clip, texts, r.extension, r.settings, not r.is_guided
    ),
}
