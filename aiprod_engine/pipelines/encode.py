"""Frames and sound -> latents of a clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import timing
from ..errors import SizeError
from ..latents.long_video import conform_length
from ..models.audio_vae.codec import encode_audio
from ..models.audio_vae.mel import to_stereo
from ..models.video_vae import VideoEncoder, stream_encode
from ..types import AVLatent


@torch.inference_mode()
def encode_frames(
    encoder: VideoEncoder,
    images: Tensor,
    fps: float,
    on_frame: Callable[[int], None] = lambda done: None,
) -> AVLatent:
    """Clip of `images` (F, H, W, 3) in [0, 1], encoded exactly, frame by frame; sound is empty."""
    frames, height, width, _ = images.shape
    timing.check_frames(frames)
    timing.check_size(height, width)
    like = encoder.conv_in.conv.weight

    def pixels():
        for done, image in enumerate(images, start=1):
            on_frame(done)
            yield (image[..., :3].movedim(-1, 0)[None] * 2 - 1).to(like)  # (1, 3, H, W)

    latents = [latent.float().cpu() for latent in stream_encode(encoder, pixels())]
    return AVLatent(torch.stack(latents, dim=2), None, frames, height, width, fps)


@torch.inference_mode()
def encode_sound(encoder: nn.Module, waveform: Tensor, rate: int, clip: AVLatent) -> AVLatent:
    """The clip with `waveform` (B, C, S) as its sound, cut or filled with silence to its length.

    A zero latent is the mean of the training data, not silence; so silence is added to the
    waveform, and only the last latent that the encoder may lack is zero.
    """
    if not waveform.shape[-1]:
        raise SizeError("a sound track must hold at least one sample, got none")
    samples = timing.track_samples(clip.frames, clip.fps, rate)
    track = to_stereo(waveform[:1].float())[..., :samples]
    track = F.pad(track, (0, samples - track.shape[-1]))
    latent = encode_audio(encoder, track.to(encoder.conv_in.conv.weight.device), rate)
    count = timing.audio_latents(clip.frames, clip.fps)
    return replace(clip, audio=conform_length(latent.float().cpu(), count))
