"""Frames and sound -> latents of a clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor, nn

from .. import timing
from ..errors import SizeError
from ..latents.long_video import conform_length
from ..media.mp4 import Sound
from ..models.audio_vae.codec import fit_track
from ..models.video_vae import VideoEncoder
from ..types import AVLatent
from .encoders import encode_sound, encode_video


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


def encode_track(encoder: nn.Module, waveform: Tensor, rate: int, clip: AVLatent) -> AVLatent:
    """The clip with `waveform` (B, C, S) as its sound, cut or filled with silence to its length.

    A zero latent is the mean of the training data, not silence; so silence is added to the
    waveform, and only the last latent that the encoder may lack is zero.
    """
    if not waveform.shape[-1]:
        raise SizeError("a sound track must hold at least one sample, got none")
    samples = timing.track_samples(clip.frames, clip.fps, rate)
    track = fit_track(waveform[0], samples, pad=True)
    latent = encode_sound(encoder, Sound(track, rate))
    return replace(clip, audio=conform_length(latent, timing.audio_latents(clip.frames, clip.fps)))
