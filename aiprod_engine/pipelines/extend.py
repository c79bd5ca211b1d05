"""A finished clip goes on: its last latents guide a new clip, which is joined to it.

Every latent but a clip's first spans 8 frames. The new clip begins with the last frame of the old
clip's latent F - n, n the overlap, so that all its latents but the first lie on the old grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import timing
from ..errors import MismatchError, SizeError
from ..latents.conditioning import GuideLatent
from ..latents.filters import adain
from ..latents.long_video import splice
from ..latents.regions import MaskItem
from ..sampling.denoise import Contexts
from ..sampling.presets import preset
from ..types import AVLatent
from .run import DEFAULTS, Run, Settings, checked, guided, sample, unguided
from .stage import Start


@dataclass(frozen=True)
class Extension:
    """How far a clip is extended and how much of it is carried over.

    `frames` is how many are added, a multiple of 8; `overlap` counts video latents. `strength` says
    how strongly the picture is held to them; the sound they cover is kept as it is. `adain` moves
    the new picture's colours towards those of the old one, 0 (off) to 1.
    """

    frames: int = 80
    overlap: int = 3
    strength: float = 0.5
    adain: float = 0.0


STANDARD = Extension()


def extend(
    run: Run,
    clip: AVLatent,
    contexts: Contexts,
    extension: Extension = STANDARD,
    settings: Settings = DEFAULTS,
    is_distilled: bool = True,
) -> AVLatent:
    """Latents of the whole clip, longer by `extension.frames`, with one continuous sound."""
    clip = checked(run, clip)
    check_extension(clip, extension)
    noise = run.begin()
    if is_distilled:
        stage = unguided(contexts, settings)
    else:
        stage = guided(contexts, settings, preset(clip.version))
    new = sample(run, "stage1", carried(clip, extension), stage, noise, settings.loras)
    return joined(clip, new, extension)


def carried(clip: AVLatent, extension: Extension) -> Start:
    """Start of the new clip: the old one's last latents as a guide, its last sound kept."""
    latents = extension.overlap + extension.frames // timing.TIME_FACTOR
    new = replace(clip, video=None, audio=None, frames=timing.pixel_frames(latents))
    guide = GuideLatent(clip.video[:, :, -extension.overlap :], 0, extension.strength)
    if clip.audio is None:
        return Start(new, (guide,))
    audio, kept = carried_audio(clip, extension)
    mask = torch.zeros(1, audio.shape[2])
    mask[:, :kept] = 1
    return Start(replace(new, audio=audio), (guide,), (MaskItem(audio, mask),))


def carried_audio(clip: AVLatent, extension: Extension) -> tuple[Tensor, int]:
    """Sound of the new clip (B, C, T, bins), zero where it is to be generated, and what is kept.

    Old latents keep their own grid, so the new clip's sound begins within half a latent of its
    picture and the joined clip has exactly as many as its frames ask for.
    """
    begin = timing.TIME_FACTOR * (
        clip.video.shape[2] - extension.overlap
    )  # frame 0 of the new clip
    first = round(begin / clip.fps * timing.AUDIO_LATENTS_PER_SECOND)
    total = timing.audio_latents(clip.frames + extension.frames, clip.fps)
    tail = clip.audio[:, :, first:]
    missing = total - clip.audio.shape[2]
    empty = tail.new_zeros(*tail.shape[:2], max(missing, 0), tail.shape[3])
    return torch.cat((tail, empty), dim=2), tail.shape[2]


def joined(clip: AVLatent, new: AVLatent, extension: Extension) -> AVLatent:
    """Old and new clip as one: the picture blended over the overlap, the sound appended."""
    video = new.video
    if extension.adain:
        video = adain(video, clip.video, extension.adain)
    audio = clip.audio
    if audio is not None:
        _, kept = carried_audio(clip, extension)
        audio = torch.cat((audio, new.audio[:, :, kept:]), dim=2)
    frames = clip.frames + extension.frames
    return replace(
        clip, video=splice(clip.video, video, extension.overlap), audio=audio, frames=frames
    )


def check_extension(clip: AVLatent, extension: Extension) -> None:
    """Raise unless there is a clip to extend and enough of it to carry over."""
    if clip.video is None:
        raise MismatchError("extending needs a finished clip; sample it first")
    if extension.frames < 1 or extension.frames % timing.TIME_FACTOR:
        raise SizeError(
            f"a clip is extended by a multiple of {timing.TIME_FACTOR} frames, "
            f"got {extension.frames}"
        )
    if not 1 <= extension.overlap <= clip.video.shape[2]:
        raise SizeError(
            f"overlap must lie in 1 .. {clip.video.shape[2]} latents, got {extension.overlap}"
        )
