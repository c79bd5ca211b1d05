"""The pipelines that `generate` knows: how each is called and what it asks of the options."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..pipelines.audio_to_video import audio_to_video
from ..pipelines.distilled import distilled
from ..pipelines.dub import dub
from ..pipelines.extend import extend
from ..pipelines.guides import AudioTrackGuide, ReferenceAudioGuide
from ..pipelines.ic_lora import ic_lora
from ..pipelines.one_stage import one_stage
from ..pipelines.retake import retake
from ..pipelines.run import Run
from ..pipelines.text_to_audio import text_to_audio
from ..pipelines.two_stage import keyframes, two_stage, two_stage_hq
from ..sampling.denoise import Contexts
from ..types import AVLatent

if TYPE_CHECKING:
    from .request import Request


@dataclass(frozen=True)
class Pipeline:
    """How one pipeline is called and what it asks of the options.

    `is_guided` None: only if the checkpoint is not distilled.
    """

    call: Callable[[Request, Run, Contexts], AVLatent]
    needs: tuple[str, ...] = ()
    is_guided: bool | None = False
    has_two_stages: bool = False

    def needed(self, options: Namespace) -> tuple[str, ...]:
        """Options that must be given."""
        refines = self.has_two_stages and not options.skip_stage_2
        return (*self.needs, "upsampler") if refines else self.needs


PIPELINES: dict[str, Pipeline] = {
    "one_stage": Pipeline(
        lambda r, run, texts: one_stage(run, r.clip, texts, r.images, r.settings), is_guided=True
    ),
    "two_stage": Pipeline(
        lambda r, run, texts: two_stage(
            run, r.clip, texts, r.images, r.distilled_lora[0], r.settings
        ),
        ("distilled_lora",), is_guided=True, has_two_stages=True,
    ),
    "two_stage_hq": Pipeline(
        lambda r, run, texts: two_stage_hq(
            run, r.clip, texts, r.images, r.distilled_lora[0][0], r.settings
        ),
        ("distilled_lora",), is_guided=True, has_two_stages=True,
    ),
    "keyframes": Pipeline(
        lambda r, run, texts: keyframes(
            run, r.clip, texts, r.images, r.distilled_lora[0], r.settings
        ),
        ("distilled_lora", "image"), is_guided=True, has_two_stages=True,
    ),
    "distilled": Pipeline(
        lambda r, run, texts: distilled(run, r.clip, texts, r.images, r.settings),
        has_two_stages=True,
    ),
    "ic_lora": Pipeline(
        lambda r, run, texts: ic_lora(
            run, r.clip, texts, [*r.images, r.reference], r.settings, r.options.skip_stage_2
        ),
        ("lora", "reference_video"), has_two_stages=True,
    ),
    "audio_to_video": Pipeline(
        lambda r, run, texts: audio_to_video(
            run, r.clip, texts, [*r.images, AudioTrackGuide(r.sound)], r.distilled_lora[0],
            r.settings,
        ),
        ("distilled_lora", "audio"), is_guided=True, has_two_stages=True,
    ),
    "retake": Pipeline(
        lambda r, run, texts: retake(
            run, r.clip.fps, texts, r.retaken, r.settings, not r.is_guided
        ),
        ("source", "window"), is_guided=None,
    ),
    "text_to_audio": Pipeline(
        lambda r, run, texts: text_to_audio(run, r.clip.frames, r.clip.fps, texts, r.settings),
        is_guided=True,
    ),
    "dub": Pipeline(
        lambda r, run, texts: dub(
            run, r.clip, texts, r.reference, ReferenceAudioGuide(r.sound), r.settings
        ),
        ("lora", "reference_video", "audio"), has_two_stages=True,
    ),
    "extend": Pipeline(
        lambda r, run, texts: extend(
            run, r.clip, texts, r.extension, r.settings,
            not r.is_guided,
        ),
        ("source",), is_guided=None,
    ),
}  # fmt: skip
