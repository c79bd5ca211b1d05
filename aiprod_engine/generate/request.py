"""What `generate` was asked for: options -> networks, clip, guides and settings, checked."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from .. import timing
from ..errors import MismatchError
from ..latents.rules import check_region, check_strength
from ..media.clips import probe, read_frames, read_sound
from ..media.images import decode_image
from ..media.mp4 import Sound
from ..media.tensor_files import load_clip
from ..memory.plan import GIB
from ..pipelines.extend import Extension, check_extension
from ..pipelines.guides import ImageGuide, ReferenceVideoGuide, RetakeGuide
from ..pipelines.networks import Lora, Networks
from ..pipelines.run import Run, Settings, checked
from ..pipelines.stage import SAMPLERS
from ..sampling import schedules
from ..sampling.guidance import Guidance
from ..sampling.negative_prompt import NEGATIVE_PROMPT
from ..sampling.presets import Preset, hq_preset, preset
from ..types import AVLatent, Streams
from .table import PIPELINES, Pipeline

_log = logging.getLogger(__name__)

SCHEDULES = {
    "ltx2": schedules.ltx2,
    "linear_quadratic": schedules.linear_quadratic,
    "beta": schedules.beta,
}
SOUND_ALONE = ("transformer", "text_encoder", "text_connector", "audio_decoder", "vocoder")
STRENGTHS = ("cfg", "stg", "modality", "rescale")
FRAMES, EXTENSION = 121, 80  # 5 s, and 3.3 s more, at 24 fps


@dataclass(frozen=True)
class Request:
    """One run as the command line states it."""

    options: argparse.Namespace
    networks: Networks

    @classmethod
    def of(cls, options: argparse.Namespace) -> Request:
        """Name the files; nothing is opened yet."""
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = options.dtype or ("float32" if device == "cpu" else "bfloat16")
        files = (options.checkpoint, options.text_encoder, options.upsampler)
        networks = Networks.of(*files, device, getattr(torch, dtype))
        if options.vram is not None and options.vram <= 0:
            raise MismatchError(f"--vram must be above 0 GiB, got {options.vram}")
        budget = None if options.vram is None else options.vram * GIB
        networks = replace(networks, policy=options.residency, budget=budget)
        return cls(options, replace(networks, check_values=options.check_values))

    @property
    def pipeline(self) -> Pipeline:
        return PIPELINES[self.options.pipeline]

    @property
    def is_guided(self) -> bool:
        if self.pipeline.is_guided is not None:
            return self.pipeline.is_guided
        return not (self.options.is_distilled or self.networks.info("transformer").distilled)

    def check(self) -> None:
        """Raise for all that options, headers and the given clips can tell."""
        self._check_options()
        self._check_clip()
        loras = (*self.loras, *self.distilled_lora)
        for note in self.networks.check(self._kinds(), loras):
            _log.warning("%s", note)
        if self.is_guided and self.networks.info("transformer").distilled:
            _log.warning("guidance degrades a distilled checkpoint; use the pipeline distilled")

    def _kinds(self) -> tuple[str, ...]:
        """Networks that the run may need."""
        if self.options.pipeline == "text_to_audio":
            return SOUND_ALONE
        return tuple(kind for kind in self.networks.files if kind != "text_vision")

    def _check_options(self) -> None:
        options, name = self.options, self.options.pipeline
        if missing := [_flag(n) for n in self.pipeline.needed(options) if not getattr(options, n)]:
            raise MismatchError(f"the pipeline {name} needs {', '.join(missing)}")
        extra = [_flag(n) for n in _guidance_options() if getattr(options, n) is not None]
        if extra and not self.is_guided:
            raise MismatchError(
                f"the pipeline {name} runs by a fixed table without guidance; leave out {extra[0]}"
            )
        if options.sampler and options.sampler not in SAMPLERS:
            raise MismatchError(
                f"the sampler must be one of {', '.join(SAMPLERS)}, got {options.sampler!r}"
            )
        if not options.output.parent.is_dir():
            raise MismatchError(f"the output's folder must exist, got {options.output.parent}")

    def _check_clip(self) -> None:
        options, clip = self.options, self.clip
        if options.pipeline != "text_to_audio":
            checked(Run(self.networks), clip, self.pipeline.has_two_stages)
        if options.pipeline == "extend":
            check_extension(clip, self.extension)
        if options.window:
            check_region(*options.window)
        check_strength(options.attention, "attention strength")
        check_strength(options.reference_strength, "reference strength")
        for guide in self.images:
            guide.check(clip)

    @cached_property
    def clip(self) -> AVLatent:
        """Size and time of the result, from the options or from the clip that is worked on."""
        o = self.options
        if o.pipeline == "extend":
            return load_clip(Path(o.source))
        if o.pipeline == "retake":
            info = probe(o.source)
            return AVLatent(None, None, info.frames, info.height, info.width, info.fps)
        frames, fps = o.frames or FRAMES, o.fps
        if o.pipeline == "dub":
            info = probe(o.reference_video)
            frames, fps = timing.snap_frames(info.frames), info.fps
        return AVLatent(None, None, frames, o.height, o.width, fps)

    @property
    def extension(self) -> Extension:
        return Extension(self.options.frames or EXTENSION, self.options.overlap)

    @property
    def loras(self) -> tuple[Lora, ...]:
        return tuple(_lora(given) for given in self.options.lora)

    @property
    def distilled_lora(self) -> tuple[Lora, ...]:
        given = self.options.distilled_lora
        return (_lora(given),) if given else ()

    @cached_property
    def images(self) -> list[ImageGuide]:
        return [_image(given, self.options.crf) for given in self.options.image]

    @property
    def given_sound(self) -> Sound | None:
        """What the result plays in place of generated sound."""
        return self.sound if self.options.pipeline == "audio_to_video" else None

    @cached_property
    def sound(self) -> Sound:
        o = self.options
        seconds = None if o.pipeline == "dub" else self.clip.frames / self.clip.fps
        sound = read_sound(o.audio, o.audio_start, seconds)
        if sound is None:
            raise MismatchError(f"{Path(o.audio).name} holds no sound; choose another file")
        return sound

    @property
    def reference(self) -> ReferenceVideoGuide:
        o, mask = self.options, None
        if o.attention_mask:  # grey, in [0, 1]
            mask = _video(o.attention_mask, self.clip.frames).float().mean(dim=-1) / 255
        frames = _video(o.reference_video, self.clip.frames)
        return ReferenceVideoGuide(frames, o.reference_strength, o.attention, mask)

    @property
    def retaken(self) -> RetakeGuide:
        o = self.options
        frames, sound = _video(o.source), read_sound(o.source)
        return RetakeGuide(frames, *o.window, sound, not o.keep_video, not o.keep_audio)

    @property
    def settings(self) -> Settings:
        o, sigmas = self.options, None
        if o.schedule not in (None, "ltx2"):
            sigmas = SCHEDULES[o.schedule](o.steps or self._preset().steps)
        return Settings(
            steps=o.steps,
            sigmas=sigmas,
            sampler=o.sampler,
            guidance=self._guidance() if self.is_guided else None,
            loras=self.loras,
            batch_passes=o.batch_passes,
        )

    def _preset(self) -> Preset:
        is_hq = self.options.pipeline == "two_stage_hq"
        return (hq_preset if is_hq else preset)(self.networks.version)

    def _guidance(self) -> Streams:
        """The authors' strengths for the version, with those that were given."""
        authors = self._preset()
        audio = authors.audio
        if self.options.pipeline == "text_to_audio":
            audio = replace(audio, modality=1.0)  # there is no picture to agree with
        return Streams(self._given("video", authors.video), self._given("audio", audio))

    def _given(self, stream: str, strengths: Guidance) -> Guidance:
        o = self.options
        given = {name: getattr(o, f"{stream}_{name}") for name in STRENGTHS}
        given["skip_step"] = o.skip_step
        given["stg_blocks"] = None if o.stg_blocks is None else tuple(o.stg_blocks)
        return replace(strengths, **{k: v for k, v in given.items() if v is not None})

    @property
    def texts(self) -> list[str]:
        """The prompt and, with guidance, what the result should not be like."""
        o, negative = self.options, self.options.negative_prompt
        if negative is None:
            negative = "" if o.pipeline == "retake" else NEGATIVE_PROMPT
        return [o.prompt, negative] if self.is_guided else [o.prompt]


def _guidance_options() -> Iterator[str]:
    yield from ("steps", "schedule", "skip_step", "stg_blocks", "negative_prompt")
    yield from (f"{stream}_{name}" for name in STRENGTHS for stream in ("video", "audio"))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _lora(given: Sequence[str]) -> Lora:
    """FILE, then nothing, a number, or `video=` and `audio=` with one each."""
    path, *words = given
    words = ",".join(words or ["1"]).split(",")
    what = "the strength of a LoRA"
    if len(words) == 1 and "=" not in words[0]:
        return path, _number(words[0], what)
    strengths = {"video": 1.0, "audio": 1.0}
    for word in words:
        stream, _, number = word.partition("=")
        if stream not in strengths:
            raise MismatchError(f"{what} is a number, or video=V,audio=A; got {word!r}")
        strengths[stream] = _number(number, what)
    return path, strengths


def _image(given: Sequence[str], crf: int | None) -> ImageGuide:
    path, frame, strength = (*given, *("0", "1")[len(given) - 1 :])[:3]
    frame = int(_number(frame, "the frame of an image"))
    return ImageGuide(decode_image(path), frame, _number(strength, "its strength"), crf)


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise MismatchError(f"{what} must be a number, got {text!r}") from None


def _video(path: str, count: int | None = None) -> Tensor:
    """Frames (F, H, W, 3) uint8."""
    return torch.stack(list(read_frames(path, count=count)))
