"""Frames and sound -> latents of a clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import timing
from ..media.mp4 import Sound
from ..memory import estimate
from ..memory.plan import Way
from ..models.audio_vae.codec import encode_audio
from ..models.audio_vae.encoder import AudioEncoder
from ..models.video_vae import Piece, VideoEncoder, VideoVAEConfig, stream_encode
from ..models.video_vae.streaming import FRAME, pieces
from ..types import AVLatent
from .guides import track_latent


@dataclass(frozen=True)
class EncodeWay(Way):
    """One way to encode frames: streamed in pieces, which is exact."""

    piece: Piece = FRAME


def encode_ways(
    config: VideoVAEConfig, height: int, width: int, itemsize: int, device: torch.device | str
) -> tuple[EncodeWay, ...]:
    """Ways to encode frames of that size in the order in which they are tried, each smaller."""
    ways: list[EncodeWay] = []
    for piece in pieces(device, height // config.patch_size):
        size = (piece.frames, height, width)
        needed = estimate.encode_streamed(config, size, itemsize, piece.frames, piece.rows)
        if not ways or needed < ways[-1].activations:
            ways.append(EncodeWay(piece.name, needed, piece=piece))
    return tuple(ways)


@torch.inference_mode()
def encode_video(encoder: VideoEncoder, frames: Iterable[Tensor], piece: Piece = FRAME) -> Tensor:
    """Latent (1, C, F, h, w) float32 on the CPU of frames (1, 3, H, W) in [-1, 1].

    Frames are taken one at a time: memory does not depend on the length, the result is that of the
    whole clip. What follows the last 8k + 1 frames is dropped.
    """
    device = encoder.conv_in.conv.weight.device
    latents = stream_encode(encoder, (frame.to(device) for frame in frames), piece)
    return torch.stack([latent.float().cpu() for latent in latents], dim=2)


@torch.inference_mode()
def encode_sound(encoder: AudioEncoder, sound: Sound) -> Tensor:
    """Latent (1, z, T, bins) float32 on the CPU of a waveform (C, S) at any rate."""
    return encode_audio(encoder, sound.waveform[None].float(), sound.rate).float().cpu()


def encode_frames(
    encoder: VideoEncoder,
    images: Tensor,
    fps: float,
    on_frame: Callable[[int], None] | None = None,
    piece: Piece = FRAME,
) -> AVLatent:
    """Clip of `images` (F, H, W, 3) in [0, 1], encoded exactly, streamed; sound is empty."""
    frames, height, width, _ = images.shape
    timing.check_frames(frames)
    timing.check_size(height, width)

    def pixels() -> Iterator[Tensor]:
        for done, image in enumerate(images, start=1):
            if on_frame is not None:
                on_frame(done)
            yield image[..., :3].movedim(-1, 0)[None].float() * 2 - 1  # (1, 3, H, W)

    return AVLatent(encode_video(encoder, pixels(), piece), None, frames, height, width, fps)


def encode_track(encoder: AudioEncoder, sound: Sound, clip: AVLatent) -> AVLatent:
    """The clip with `sound`, cut or filled with silence to its length."""
    return replace(clip, audio=track_latent(sound, clip, lambda s: encode_sound(encoder, s)))
