"""What `generate` was asked for: options -> networks, settings, guides and one pipeline call."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from . import timing
from .errors import MismatchError
from .latents.rules import check_clip, check_region, check_strength
from .media.clips import probe, read_frames, read_sound
from .media.images import decode_image
from .media.mp4 import Sound
from .media.tensor_files import load_clip
from .pipelines.audio_to_video import audio_to_video
from .pipelines.distilled import distilled
from .pipelines.dub import dub
from .pipelines.extend import Extension, extend
from .pipelines.guides import (
    AudioTrackGuide,
    ImageGuide,
    ReferenceAudioGuide,
    ReferenceVideoGuide,
    RetakeGuide,
)
from .pipelines.ic_lora import ic_lora
from .pipelines.networks import Lora, Networks
from .pipelines.one_stage import one_stage
from .pipelines.prompts import encode_prompts
from .pipelines.retake import retake
from .pipelines.run import Run, Settings
from .pipelines.stage import SAMPLERS, Tell
from .pipelines.text_to_audio import text_to_audio
from .pipelines.two_stage import keyframes, two_stage, two_stage_hq
from .sampling import schedules
from .sampling.denoise import Contexts
from .sampling.guidance import Guidance
from .sampling.negative_prompt import NEGATIVE_PROMPT
from .sampling.presets import hq_preset, preset
from .types import AVLatent, Streams

SCHEDULES = {
    "ltx2": schedules.ltx2,
    "linear_quadratic": schedules.linear_quadratic,
    "beta": schedules.beta,
}
STRENGTHS = ("cfg", "stg", "modality", "rescale")


@dataclass(frozen=True)
class Pipeline:
    """How one pipeline is called and what it asks of the options.

    `is_guided` None: only if the checkpoint is not said to be distilled.
    """

    call: Callable[[Request, Run, Contexts], AVLatent]
    needs: tuple[str, ...] = ()
    is_guided: bool | None = False
    has_two_stages: bool = False


@dataclass(frozen=True)
class Request:
    """One run as the command line states it."""

    options: argparse.Namespace
    networks: Networks

    @classmethod
    def of(cls, options: argparse.Namespace) -> Request:
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = options.dtype or ("float32" if device == "cpu" else "bfloat16")
        networks = Networks.of(
            options.checkpoint,
            options.text_encoder,
            options.upsampler,
            device,
            getattr(torch, dtype),
        )
        return cls(options, networks)

    @property
    def pipeline(self) -> Pipeline:
        return PIPELINES[self.options.pipeline]

    @property
    def is_guided(self) -> bool:
        guided = self.pipeline.is_guided
        return not self.options.is_distilled if guided is None else guided

    def check(self) -> None:
        """Raise for everything that options, headers and the files' first frames can tell."""
        options = self.options
        missing = [n for n in self.pipeline.needs if not getattr(options, n)]
        if missing:
            names = ", ".join("--" + name.replace("_", "-") for name in missing)
            raise MismatchError(f"the pipeline {options.pipeline} needs {names}")
        given = [n for n in self._guidance_options() if getattr(options, n) is not None]
        if given and not self.is_guided:
            raise MismatchError(
                f"the pipeline {options.pipeline} runs without guidance and by a fixed table; "
                f"leave out --{given[0].replace('_', '-')}"
            )
        if options.sampler and options.sampler not in SAMPLERS:
            raise MismatchError(
                f"sampler must be one of {', '.join(SAMPLERS)}, got {options.sampler!r}"
            )
        if not options.output.parent.is_dir():
            raise MismatchError(f"the folder of the output must exist: {options.output.parent}")
        self._check_clip()
        for note in self.networks.check((*self.loras, *self.distilled_lora)):
            logger.warning("%s", note)

    def _guidance_options(self) -> Iterator[str]:
        yield from ("steps", "schedule", "skip_step", "stg_blocks", "negative_prompt")
        yield from (f"{stream}_{name}" for name in STRENGTHS for stream in ("video", "audio"))

    def _check_clip(self) -> None:
        options, clip = self.options, self.clip
        if options.pipeline != "text_to_audio":
            check_clip(clip.frames, clip.height, clip.width, self.pipeline.has_two_stages)
        if options.window:
            check_region(*options.window)
        check_strength(options.attention, "attention strength")
        check_strength(options.reference_strength, "reference strength")
        for guide in self.images:
            check_strength(guide.strength)

    @cached_property
    def clip(self) -> AVLatent:
        """Size and time of the result, from the options or from the clip that is worked on."""
        o = self.options
        if o.pipeline == "extend":
            return load_clip(Path(o.source))
        if o.pipeline == "retake":
            info = probe(o.source)
            return AVLatent(None, None, info.frames, info.height, info.width, info.fps)
        if o.pipeline == "dub":
            info = probe(o.reference_video)
            frames = timing.snap_frames(info.frames)
            return AVLatent(None, None, frames, o.height, o.width, info.fps)
        return AVLatent(None, None, o.frames, o.height, o.width, o.fps)

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
        """The sound that the result plays if it is not the generated one."""
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
        o, count = self.options, self.clip.frames
        mask = None
        if o.attention_mask:
            mask = _video(o.attention_mask, count).float().mean(dim=-1) / 255  # grey in [0, 1]
        frames = _video(o.reference_video, count)
        return ReferenceVideoGuide(frames, o.reference_strength, o.attention, mask)

    @property
    def retaken(self) -> RetakeGuide:
        o = self.options
        frames, sound = _video(o.source), read_sound(o.source)
        return RetakeGuide(frames, *o.window, sound, not o.keep_video, not o.keep_audio)

    @property
    def settings(self) -> Settings:
        o = self.options
        sigmas = None
        if o.schedule not in (None, "ltx2"):
            sigmas = SCHEDULES[o.schedule](o.steps or self._preset().steps)
        guidance = self._guidance() if self.is_guided else None
        return Settings(
            o.steps, sigmas, None, o.sampler, guidance, self.loras, o.batch_passes
        )

    def _preset(self):
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
        given |= {"skip_step": o.skip_step}
        given |= {"stg_blocks": None if o.stg_blocks is None else tuple(o.stg_blocks)}
        return replace(strengths, **{k: v for k, v in given.items() if v is not None})

    def sample(self, tell: Tell) -> AVLatent:
        """Encode the prompts and run the pipeline."""
        o = self.options
        negative = o.negative_prompt
        if negative is None:
            negative = "" if o.pipeline == "retake" else NEGATIVE_PROMPT
        texts = [o.prompt, negative] if self.is_guided else [o.prompt]
        contexts = Contexts(*encode_prompts(self.networks, texts))
        return self.pipeline.call(self, Run(self.networks, o.seed, tell=tell), contexts)


def _lora(given: Sequence[str]) -> Lora:
    path, strength = (*given, "1.0")[:2]
    return path, _number(strength, "the strength of a LoRA")


def _image(given: Sequence[str], crf: int | None) -> ImageGuide:
    path, frame, strength = (*given, *("0", "1.0")[len(given) - 1 :])
    where = _number(frame, "the frame of an image")
    return ImageGuide(
        decode_image(path), int(where), _number(strength, "the strength of an image"), crf
    )


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise MismatchError(f"{what} must be a number, got {text!r}") from None


def _video(path: str, count: int | None = None) -> Tensor:
    return torch.stack(list(read_frames(path, count=count)))


_SECOND = ("upsampler", "distilled_lora")

PIPELINES: dict[str, Pipeline] = {
    "one_stage": Pipeline(
        lambda r, run, texts: one_stage(run, r.clip, texts, r.images, r.settings), is_guided=True
    ),
    "two_stage": Pipeline(
        lambda r, run, texts: two_stage(
            run, r.clip, texts, r.images, r.distilled_lora[0], r.settings
        ),
        _SECOND, is_guided=True, has_two_stages=True,
    ),
    "two_stage_hq": Pipeline(
        lambda r, run, texts: two_stage_hq(
            run, r.clip, texts, r.images, r.distilled_lora[0][0], r.settings
        ),
        _SECOND, is_guided=True, has_two_stages=True,
    ),
    "keyframes": Pipeline(
        lambda r, run, texts: keyframes(
            run, r.clip, texts, r.images, r.distilled_lora[0], r.settings
        ),
        (*_SECOND, "image"), is_guided=True, has_two_stages=True,
    ),
    "distilled": Pipeline(
        lambda r, run, texts: distilled(run, r.clip, texts, r.images, r.settings),
        ("upsampler",), has_two_stages=True,
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
        (*_SECOND, "audio"), is_guided=True, has_two_stages=True,
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
        ("upsampler", "lora", "reference_video", "audio"), has_two_stages=True,
    ),
    "extend": Pipeline(
        lambda r, run, texts: extend(
            run, r.clip, texts, Extension(r.options.frames, r.options.overlap), r.settings,
            not r.is_guided,
        ),
        ("source",), is_guided=None,
    ),
}  # fmt: skip
