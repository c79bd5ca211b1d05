"""Latents -> frames and sound track of a clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .. import timing
from ..errors import MismatchError
from ..media.pixels import to_image
from ..models.audio_vae.codec import decode_audio, fit_track
from ..models.video_vae import VideoDecoder, stream_decode
from ..tiling import TileSizes, decode_plan, tiled_decode
from ..types import AVLatent

TILINGS = ("auto", "tiled", "off")


@torch.inference_mode()
def decode_frames(
    decoder: VideoDecoder,
    latent: AVLatent,
    tiling: str = "auto",
    on_frames: Callable[[int], None] | None = None,
) -> Tensor:
    """Frames (F, H, W, 3) in [0, 1], float32 on the CPU, of the first sample of a clip.

    `on_frames` hears how many frames are done and may raise to cancel.
    """
    images = torch.empty(latent.frames, latent.height, latent.width, 3)
    done = 0
    for chunk in pixel_chunks(decoder, latent, tiling):
        count = chunk.shape[2]
        images[done : done + count] = to_image(chunk)
        done += count
        if on_frames is not None:
            on_frames(done)
    return images


def pixel_chunks(decoder: VideoDecoder, latent: AVLatent, tiling: str = "auto") -> Iterator[Tensor]:
    """Pixels (1, 3, f, H, W) in [-1, 1] of the first sample, chunk by chunk in time order.

    `auto` is exact and its memory does not depend on the length; `tiled` is the authors' overlap
    tiling, an approximation; `off` decodes the whole clip at once.
    """
    check_decodable(latent)
    if tiling not in TILINGS:
        raise MismatchError(f"tiling must be one of {', '.join(TILINGS)}, got {tiling!r}")
    return _chunks(decoder, latent.video[:1].to(decoder.conv_in.conv.weight), tiling)


def check_decodable(latent: AVLatent) -> None:
    """Raise unless the clip has a picture."""
    if latent.video is None:
        raise MismatchError("this latent has no video to decode; wire a sampler's output here")


@torch.inference_mode()
def _chunks(decoder: VideoDecoder, video: Tensor, tiling: str) -> Iterator[Tensor]:
    if tiling == "auto":
        for frame in stream_decode(decoder, video.unbind(2)):
            yield frame.unsqueeze(2)
    elif tiling == "tiled":
        yield from tiled_decode(decoder, video, decode_plan(video.shape[2:], TileSizes()))
    else:
        yield decoder(video)


@torch.inference_mode()
def decode_track(decoder: nn.Module, vocoder: nn.Module, latent: AVLatent) -> tuple[Tensor, int]:
    """Waveform (B, 2, S) float32 on the CPU and its rate, exactly as long as the picture.

    Decoded sound is 10 to 50 ms shorter than the picture; the rest is silence.
    """
    if latent.audio is None:
        raise MismatchError("this latent has no sound to decode; wire a sampler's output here")
    waveform, rate = decode_audio(decoder, vocoder, latent.audio)
    samples = timing.track_samples(latent.frames, latent.fps, rate)
    return fit_track(waveform.float().cpu(), samples, pad=True), rate
