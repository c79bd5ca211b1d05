"""The pipelines that `generate` knows: what each asks of the options."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass


@dataclass(frozen=True)
class Pipeline:
    """What one pipeline asks of the options.

    `is_guided` None: only if the checkpoint is not distilled.
    """

    needs: tuple[str, ...] = ()
    is_guided: bool | None = False
    has_two_stages: bool = False

    def needed(self, options: Namespace) -> tuple[str, ...]:
        """Options that must be given."""
        refines = self.has_two_stages and not options.skip_stage_2
        return (*self.needs, "upsampler") if refines else self.needs


PIPELINES: dict[str, Pipeline] = {
    "one_stage": Pipeline(is_guided=True),
    "two_stage": Pipeline(("distilled_lora",), is_guided=True, has_two_stages=True),
    "two_stage_hq": Pipeline(("distilled_lora",), is_guided=True, has_two_stages=True),
    "distilled": Pipeline(has_two_stages=True),
    "keyframes": Pipeline(("distilled_lora", "image"), is_guided=True, has_two_stages=True),
    "ic_lora": Pipeline(("lora", "reference_video"), has_two_stages=True),
    "audio_to_video": Pipeline(("distilled_lora", "audio"), is_guided=True, has_two_stages=True),
    "retake": Pipeline(("source", "window"), is_guided=None),
    "text_to_audio": Pipeline(is_guided=True),
    "dub": Pipeline(("lora", "reference_video", "audio"), has_two_stages=True),
    "extend": Pipeline(("source",), is_guided=None),
}
