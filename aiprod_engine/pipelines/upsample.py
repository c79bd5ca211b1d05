"""A clip's video latent on a finer grid: more pixels, or more frames at a higher rate."""

from __future__ import annotations

from dataclasses import replace

import torch

from .. import timing
from ..errors import MismatchError
from ..models.upsampler import Upsampler
from ..models.video_vae import PerChannelStatistics
from ..types import AVLatent


@torch.inference_mode()
def upsample(upsampler: Upsampler, statistics: PerChannelStatistics, latent: AVLatent) -> AVLatent:
    """The clip after a latent upsampler, float32 on the CPU; sound passes through.

    The network works on un-normalised latents, hence the video VAE's `statistics`. A temporal
    upsampler doubles fps and keeps the duration.
    """
    if latent.video is None:
        raise MismatchError("this latent has no video to upsample; wire a sampler's output here")
    device = upsampler.initial_conv.weight.device
    video = upsampler(latent.video.to(device), statistics).float().cpu()
    frames, height, width = video.shape[2:]
    return replace(
        latent,
        video=video,
        frames=timing.pixel_frames(frames),
        height=height * timing.SPACE_FACTOR,
        width=width * timing.SPACE_FACTOR,
        fps=latent.fps * (2 if upsampler.config.temporal_upsample else 1),
    )
