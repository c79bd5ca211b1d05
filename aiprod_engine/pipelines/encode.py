"""Frames and sound -> latents of a clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor, nn

from .. import timing
from ..media.mp4 import Sound
from ..models.video_vae import VideoEncoder
from ..types import AVLatent
from .encoders import encode_sound, encode_video
from .guides import track_latent


def encode_frames(
    encoder: VideoEncoder,
    images: Tensor,
    fps: float,
    on_frame: Callable[[int], None] | None = None,
) -> AVLatent:
    """Clip of `images` (F, H, W, 3) in [0, 1], encoded exactly, frame by frame; sound is empty."""
    frames, height, width, _ = images.shape
    timing.check_frames(frames)
    timing.check_size(height, width)

    def pixels() -> Iterator[Tensor]:
        for done, image in enumerate(images, start=1):
            if on_frame is not None:
                on_frame(done)
            yield image[..., :3].movedim(-1, 0)[None].float() * 2 - 1  # (1, 3, H, W)

    return AVLatent(encode_video(encoder, pixels()), None, frames, height, width, fps)


def encode_track(encoder: nn.Module, sound: Sound, clip: AVLatent) -> AVLatent:
    """The clip with `sound`, cut or filled with silence to its length."""
    return replace(clip, audio=track_latent(sound, clip, lambda s: encode_sound(encoder, s)))
