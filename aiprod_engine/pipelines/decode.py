"""Latents -> frames and sound track of a clip."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import timing
from ..errors import MismatchError
from ..media.pixels import to_image
from ..memory import estimate
from ..memory.free import is_out_of_memory
from ..memory.placed import Placed
from ..models.audio_vae.codec import decode_audio, fit_track
from ..models.diffusion_vae import DECODE_SEED, DiffusionDecoder, DiffusionDecoderConfig
from ..models.video_vae import Piece, VideoDecoder, VideoVAEConfig, stream_decode
from ..models.video_vae.streaming import FRAME, pieces, resume_point
from ..tiling import TileSizes, decode_plan, tiled_decode
from ..types import AVLatent
from .decode_diffusion import DiffusionWay, diffusion_ways

_log = logging.getLogger(__name__)

TILINGS = ("auto", "tiled", "off")
# Overlap tiles, largest first: the authors' default, their former one, and two for small devices.
_TILES = (TileSizes(768), TileSizes(512), TileSizes(256), TileSizes(128, 32))


@dataclass(frozen=True)
class DecodeWay:
    """One way to decode a clip: at once, streamed in pieces, or in tiles of `sizes`."""

    name: str
    activations: int
    sizes: TileSizes | None = None
    is_whole: bool = False
    piece: Piece = FRAME

    def chunks(self, decoder: VideoDecoder, video: Tensor) -> Iterator[Tensor]:
        """Pixels (B, 3, f, H, W) of a latent (B, C, F, h, w) in time order; tiles on the CPU."""
        if self.is_whole:
            yield decoder(video)
        elif self.sizes is None:
            for frame in stream_decode(decoder, video.unbind(2), self.piece):
                yield frame.unsqueeze(2)
        else:
            plan = decode_plan(video.shape[2:], self.sizes)
            yield from tiled_decode(lambda tile: _streamed(decoder, tile), video, plan)

    def restart(self, config: VideoVAEConfig, emitted: int) -> tuple[int, int]:
        """Latent to begin again at, and frames to discard, to go on after `emitted` frames."""
        return resume_point(config, emitted)

    def on_cpu(self) -> DecodeWay:
        """What replaces the smallest way once the device is left."""
        return DecodeWay(FRAME.name, 0)


def _streamed(decoder: VideoDecoder, tile: Tensor) -> Tensor:
    """Pixels of a tile on the CPU: the device holds one frame, and no sums of tiles."""
    return torch.stack([frame.cpu() for frame in stream_decode(decoder, tile.unbind(2))], dim=2)


def decode_ways(
    config: VideoVAEConfig | DiffusionDecoderConfig,
    latent: Sequence[int],
    itemsize: int,
    tiling: str = "auto",
    seed: int = DECODE_SEED,
    device: torch.device | str = "cpu",
) -> tuple[DecodeWay, ...] | tuple[DiffusionWay, ...]:
    """Ways to decode a latent (F, h, w) in the order in which they are tried, each smaller.

    `auto` streams, which is exact: in the `pieces` of the `device`. `tiled` begins with overlap
    tiles, an approximation, and `off` with the whole clip. A diffusion decoder, whose noise `seed`
    draws, cannot stream: its `auto` begins with the whole clip.
    """
    if tiling not in TILINGS:
        raise MismatchError(f"tiling must be one of {', '.join(TILINGS)}, got {tiling!r}")
    if isinstance(config, DiffusionDecoderConfig):
        return diffusion_ways(config, latent, itemsize, tiling, seed)
    whole = DecodeWay("all at once", estimate.decode_untiled(config, latent, itemsize), None, True)
    rows = latent[1] * config.decoder.space_factor
    streamed = [_streamed_way(config, latent, itemsize, piece) for piece in pieces(device, rows)]
    tiles = [_tiles(config, latent, itemsize, sizes) for sizes in _TILES]
    ways = {"off": [whole, *streamed, *tiles], "auto": [*streamed, *tiles], "tiled": tiles}[tiling]
    smaller = (w for i, w in enumerate(ways) if _saves(w, ways[:i]))
    return tuple(smaller)


def _saves(way: DecodeWay, before: Sequence[DecodeWay]) -> bool:
    # A short clip streams in more than it decodes at once in; it still is the next resort.
    if way.is_whole or (way.sizes is None and way.piece == FRAME):
        return True
    # Rows also save workspace of kernels, which is not counted.
    is_cut = way.sizes is None and way.piece.rows is not None
    least = min((earlier.activations for earlier in before), default=math.inf)
    return way.activations < least + is_cut


def _streamed_way(
    config: VideoVAEConfig, latent: Sequence[int], itemsize: int, piece: Piece
) -> DecodeWay:
    needed = estimate.decode_streamed(config, latent, itemsize, piece.frames, piece.rows)
    return DecodeWay(piece.name, needed, piece=piece)


def _tiles(
    config: VideoVAEConfig, latent: Sequence[int], itemsize: int, sizes: TileSizes
) -> DecodeWay:
    plan = decode_plan(latent, sizes)
    needed = estimate.decode_streamed(config, plan.largest, itemsize)
    return DecodeWay(f"{plan.count} overlapping tiles, an approximation", needed, sizes)


@torch.inference_mode()
def decode_frames(
    decoder: VideoDecoder | DiffusionDecoder,
    latent: AVLatent,
    tiling: str = "auto",
    on_frames: Callable[[int], None] | None = None,
    placed: Placed | None = None,
    seed: int = DECODE_SEED,
) -> Tensor:
    """Frames (F, H, W, 3) in [0, 1], float32 on the CPU, of the first sample of a clip.

    `on_frames` hears how many frames are done and may raise to cancel. `seed` draws the noise of a
    diffusion decoder; the same one gives the same frames.
    """
    images = torch.empty(latent.frames, latent.height, latent.width, 3)
    done = 0
    for chunk in pixel_chunks(decoder, latent, tiling, placed, seed):
        count = chunk.shape[2]
        images[done : done + count] = to_image(chunk)
        done += count
        if on_frames is not None:
            on_frames(done)
    return images


def pixel_chunks(
    decoder: VideoDecoder | DiffusionDecoder,
    latent: AVLatent,
    tiling: str = "auto",
    placed: Placed | None = None,
    seed: int = DECODE_SEED,
) -> Iterator[Tensor]:
    """Pixels (1, 3, f, H, W) in [-1, 1] of the first sample, chunk by chunk in time order.

    Begins with the first of `decode_ways` that fits `placed`. Where memory runs out all the same,
    the next one goes on after the last frame: what was handed out is final.
    """
    check_decodable(latent)
    size, like = latent.video.shape[2:], decoder.like
    ways = decode_ways(decoder.config, size, like.element_size(), tiling, seed, like.device)
    placed = placed or Placed.alone("decode video", decoder)
    fitting = (i for i, way in enumerate(ways) if way.activations <= placed.room)
    first = next(fitting, len(ways) - 1)
    if first:
        _log.warning("decode video: %s, to fit into memory", ways[first].name)
    return _chunks(decoder, latent.video[:1], ways[first:], placed)


def check_decodable(latent: AVLatent) -> None:
    """Raise unless the clip has a picture."""
    if latent.video is None:
        raise MismatchError("this latent has no video to decode; wire a sampler's output here")


@torch.inference_mode()
def _chunks(
    decoder: VideoDecoder | DiffusionDecoder,
    video: Tensor,
    ways: Sequence[DecodeWay | DiffusionWay],
    placed: Placed,
) -> Iterator[Tensor]:
    emitted, ways = 0, list(ways)
    while True:
        try:
            for chunk in _rest(decoder, video, ways[0], emitted):
                emitted += chunk.shape[2]
                yield chunk
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if placed.gives():  # the same way once more
            continue
        if len(ways) > 1:
            del ways[0]
            placed.warn(ways[0].name)
        elif placed.leaves():
            ways = [ways[0].on_cpu()]
        else:
            raise placed.failure()


def _rest(
    decoder: VideoDecoder | DiffusionDecoder,
    video: Tensor,
    way: DecodeWay | DiffusionWay,
    emitted: int,
) -> Iterator[Tensor]:
    """Chunks after the first `emitted` frames."""
    start, skipped = way.restart(decoder.config, emitted)
    left = video[:, :, start:].to(decoder.like)  # which may have left the device
    for chunk in way.chunks(decoder, left):
        kept = chunk[:, :, skipped:]
        skipped -= chunk.shape[2] - kept.shape[2]
        if kept.shape[2]:
            yield kept


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
