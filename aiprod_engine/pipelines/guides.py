"""What a user gives beside the prompt, in pixels and waveforms.

A guide has no size of its own: it is encoded anew for every stage that uses it, so that one list
serves both stages of a two-stage run. Pictures are (H, W, 3) uint8, sounds float in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import ClassVar, Protocol

from torch import Tensor

from .. import timing
from ..errors import MismatchError, SizeError
from ..latents.attention import with_attention
from ..latents.conditioning import (
    Conditioning,
    ImagePolicy,
    KeyframeIndex,
    LatentIndex,
    clip_start,
    image_item,
)
from ..latents.long_video import conform_length
from ..latents.references import ReferenceAudio, ReferenceLatent
from ..latents.regions import MaskItem, TemporalRegion, inpaint_mask, mask_downsample
from ..latents.rules import (
    check_frame_index,
    check_latent_span,
    check_reference_size,
    check_region,
    check_strength,
)
from ..media.images import fill_resize, frames_to_video, recompress
from ..media.mp4 import Sound
from ..models.audio_vae.codec import fit_track
from ..sampling.presets import preset
from ..types import AVLatent
from ..weights.lora.ic_lora import Reference
from .stage import Start

NEUTRAL = Reference()  # what videos follow without an IC-LoRA
_TARGET, _IMAGE, _REFERENCE = 0, 1, 3  # order of items; generated slots (2) come between


@dataclass(frozen=True)
class Encoders:
    """How guides become normalised latents.

    `video` takes frames (1, 3, H, W) in [-1, 1] one by one, if need be more than once, and returns
    (1, C, F, h, w); `audio` takes a `Sound` and returns (1, z, T, bins).
    """

    video: Callable[[Iterable[Tensor]], Tensor]
    audio: Callable[[Sound], Tensor]


class Guide(Protocol):
    """Something given: `add` encodes it for a stage and returns the stage's start with it."""

    order: ClassVar[int]

    def add(self, start: Start, encode: Encoders, reference: Reference) -> Start: ...


def encode_guides(
    guides: Sequence[Guide],
    latent: AVLatent,
    encode: Encoders,
    reference: Reference = NEUTRAL,
) -> Start:
    """Start of a stage of the size of `latent` with all guides.

    Items keep the order of the list within their kind: images come before references, masks of
    the target before both. `reference` is what the IC-LoRA says about reference videos.
    """
    start = Start(latent)
    for guide in sorted(guides, key=lambda guide: guide.order):
        start = guide.add(start, encode, reference)
    return start


@dataclass(frozen=True)
class ImageGuide:
    """A still at pixel frame `frame`; negative frames count from the end.

    `crf` is the recompression that a still gets, None: the default of the model's version.
    """

    image: Tensor
    frame: int = 0
    strength: float = 1.0
    crf: int | None = None
    policy: ImagePolicy = "combined"
    order: ClassVar[int] = _IMAGE

    def check(self, clip: AVLatent) -> None:
        """Raise unless strength and place are possible in `clip`."""
        check_strength(self.strength)
        frame = _from_start(self.frame, clip.frames)
        if self.policy == "replacing":
            check_latent_span(frame, 1, timing.latent_frames(clip.frames))
        else:
            check_frame_index(frame, clip.frames)

    def add(self, start: Start, encode: Encoders, reference: Reference) -> Start:  # noqa: ARG002
        self.check(start.latent)
        crf = preset(start.latent.version).crf if self.crf is None else self.crf
        latent = encode.video(Pixels([recompress(self.image, crf)], start.latent))
        frame = _from_start(self.frame, start.latent.frames)
        return _with_video(start, image_item(latent, frame, self.strength, self.policy))


@dataclass(frozen=True)
class ClipGuide:
    """A clip (F, H, W, 3) from pixel frame `frame` on.

    Beyond frame 0 it is moved to 8k + 1 and encoded with its first frame doubled, so that each of
    its latents spans 8 frames like the target's.
    """

    frames: Tensor
    frame: int = 0
    strength: float = 1.0
    order: ClassVar[int] = _IMAGE

    def add(self, start: Start, encode: Encoders, reference: Reference) -> Start:  # noqa: ARG002
        first = clip_start(_from_start(self.frame, start.latent.frames))
        count = min(len(self.frames), start.latent.frames - first)
        if first == 0:
            latent = encode.video(Pixels(self.frames[: timing.snap_frames(count)], start.latent))
            return _with_video(start, LatentIndex(latent, 0, self.strength))
        count = count // timing.TIME_FACTOR * timing.TIME_FACTOR
        if not count:
            raise SizeError(
                f"a clip at frame {self.frame} needs at least 8 frames within the target's "
                f"{start.latent.frames}; give it as images"
            )
        clip = (self.frames[0], *self.frames[:count])
        latent = encode.video(Pixels(clip, start.latent))[:, :, 1:]
        return _with_video(start, KeyframeIndex(latent, first, self.strength, clip_frames=count))


@dataclass(frozen=True)
class ReferenceVideoGuide:
    """A video (F, H, W, 3) that an IC-LoRA follows.

    `attention` in [0, 1] is how much the target and the reference see of each other;
    `attention_mask` (F or 1, H, W) in [0, 1] varies it over the picture.
    """

    frames: Tensor
    strength: float = 1.0
    attention: float = 1.0
    attention_mask: Tensor | None = None
    order: ClassVar[int] = _REFERENCE

    def add(self, start: Start, encode: Encoders, reference: Reference) -> Start:
        clip, factor = start.latent, reference.spatial_factor
        check_strength(self.attention, "attention strength")
        check_reference_size(clip.height, clip.width, factor)
        kept = list(_subsampled(len(self.frames[: clip.frames]), reference.temporal_factor))
        small = replace(clip, height=clip.height // factor, width=clip.width // factor)
        latent = encode.video(Pixels([self.frames[i] for i in kept], small))
        item = ReferenceLatent(latent, self.strength, factor, reference.temporal_factor)
        weights = None
        if self.attention_mask is not None:
            weights = self._token_weights(clip, latent, kept)
        return _with_video(start, with_attention(item, self.attention, weights))

    def _token_weights(self, clip: AVLatent, latent: Tensor, kept: list[int]) -> Tensor:
        masks = self.attention_mask
        if len(masks) == 1:  # one mask for all frames
            masks = masks.expand(kept[-1] + 1, -1, -1)
        if len(masks) <= kept[-1]:
            raise SizeError(
                f"the attention mask must have as many frames as the reference, {kept[-1] + 1}, "
                f"got {len(masks)}"
            )
        kept = kept[: timing.pixel_frames(latent.shape[2])]  # what the encoder could use
        mask = fill_resize(masks[kept][:, None], clip.height, clip.width)
        return mask_downsample(mask.movedim(0, 1)[None], *latent.shape[2:])


@dataclass(frozen=True)
class ReferenceAudioGuide:
    """A voice to speak with, of any length; `before_target` puts it at negative times (Dub-It).

    A later stage, whose clip has its sound already, keeps that sound and follows its voice.
    """

    sound: Sound
    strength: float = 1.0
    before_target: bool = True
    order: ClassVar[int] = _REFERENCE

    def add(self, start: Start, encode: Encoders, reference: Reference) -> Start:  # noqa: ARG002
        made = start.latent.audio
        voice = encode.audio(self.sound) if made is None else made
        item = ReferenceAudio(voice, self.strength, self.before_target)
        frozen = start.frozen if made is None else start.frozen | {"audio"}
        return replace(start, audio_items=(*start.audio_items, item), frozen=frozen)


@dataclass(frozen=True)
class AudioTrackGuide:
    """The finished sound of the clip: the picture is generated to it."""

    sound: Sound
    order: ClassVar[int] = _TARGET

    def add(self, start: Start, encode: Encoders, reference: Reference) -> Start:  # noqa: ARG002
        track = track_latent(self.sound, start.latent, encode.audio)
        return _with_audio(start, track, is_frozen=True)


@dataclass(frozen=True)
class RetakeGuide:
    """A finished clip (F, H, W, 3) of which [start, end) seconds are generated again.

    A stream that is not regenerated stays as it is; an absent sound is generated as a whole.
    """

    frames: Tensor
    start: float
    end: float
    sound: Sound | None = None
    regenerates_video: bool = True
    regenerates_audio: bool = True
    order: ClassVar[int] = _TARGET

    def add(self, start: Start, encode: Encoders, reference: Reference) -> Start:  # noqa: ARG002
        check_region(self.start, self.end)
        if not (self.regenerates_video or self.regenerates_audio):
            raise MismatchError("a retake must regenerate the picture, the sound or both")
        region = TemporalRegion(self.start, self.end)
        video = encode.video(Pixels(self.frames[: start.latent.frames], start.latent))
        video = conform_length(video, timing.latent_frames(start.latent.frames))
        start = replace(start, latent=replace(start.latent, video=video))
        if self.regenerates_video:
            start = _with_video(start, region)
        else:
            start = replace(start, frozen=start.frozen | {"video"})
        if self.sound is None:
            return start
        track = track_latent(self.sound, start.latent, encode.audio)
        start = _with_audio(start, track, is_frozen=not self.regenerates_audio)
        if self.regenerates_audio:
            start = replace(start, audio_items=(*start.audio_items, region))
        return start


@dataclass(frozen=True)
class MaskGuide:
    """A clip (F, H, W, 3) that is generated again where `mask` (F or 1, H, W) is 1."""

    frames: Tensor
    mask: Tensor
    strength: float = 1.0
    order: ClassVar[int] = _TARGET

    def add(self, start: Start, encode: Encoders, reference: Reference) -> Start:  # noqa: ARG002
        clip = start.latent
        if len(self.frames) < clip.frames or 1 < len(self.mask) < clip.frames:
            raise SizeError(
                f"an inpainting clip and its mask must have the target's {clip.frames} frames, "
                f"got {len(self.frames)} and {len(self.mask)}"
            )
        latent = encode.video(Pixels(self.frames[: clip.frames], clip))
        mask = fill_resize(self.mask[: clip.frames, None], clip.height, clip.width)[:, 0]
        regenerated = inpaint_mask(mask.expand(clip.frames, -1, -1)[None])
        return _with_video(start, MaskItem(latent, 1 - regenerated, self.strength))


@dataclass(frozen=True)
class Pixels:
    """Frames (H, W, 3) uint8 as (1, 3, height, width) in [-1, 1] of the clip's size, one by one.

    They can be gone through again: an encoder that ran out of memory begins anew.
    """

    frames: Sequence[Tensor] | Tensor
    clip: AVLatent

    def __iter__(self) -> Iterator[Tensor]:
        for frame in self.frames:
            yield frames_to_video([frame], self.clip.height, self.clip.width)[:, :, 0]


def _subsampled(count: int, factor: int) -> Iterator[int]:
    """Frame 0, then every `factor`-th frame from frame 1 on."""
    return chain(islice(range(count), 1), range(1, count, factor))


def _from_start(frame: int, frames: int) -> int:
    return frame + frames if frame < 0 else frame


def _with_video(start: Start, item: Conditioning) -> Start:
    return replace(start, video_items=(*start.video_items, item))


def _with_audio(start: Start, audio: Tensor, is_frozen: bool) -> Start:
    if start.latent.audio is not None and "audio" in start.frozen:
        raise MismatchError("a clip has one sound track; two guides give one")
    frozen = start.frozen | {"audio"} if is_frozen else start.frozen
    return replace(start, latent=replace(start.latent, audio=audio), frozen=frozen)


def track_latent(sound: Sound, clip: AVLatent, encode: Callable[[Sound], Tensor]) -> Tensor:
    """Audio latent (1, z, T, bins) exactly as long as the picture of `clip`.

    A zero latent is the mean of the training data, not silence: a sound that is too short is filled
    with silence first, and only the last latent that the encoder may lack is zero.
    """
    if not sound.waveform.shape[-1]:
        raise SizeError("a sound track must hold at least one sample, got none")
    samples = timing.track_samples(clip.frames, clip.fps, sound.rate)
    latent = encode(Sound(fit_track(sound.waveform, samples, pad=True), sound.rate))
    return conform_length(latent, timing.audio_latents(clip.frames, clip.fps))
