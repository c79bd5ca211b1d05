"""Frame-rate doubling in rounds (2.5): canvas, tiles of whole segments, audio windows.

All frames are pixel frames of the round at hand unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..timing import AUDIO_LATENTS_PER_SECOND, TIME_FACTOR, audio_latents
from .rules import check_dfr_frames

SEGMENTS = (32, 24)  # frames between generated keyframes; the first one wins a tie


@dataclass(frozen=True)
class Canvas:
    """Stage 1's clip: `frames` = a whole number of segments plus 1."""

    frames: int
    segment: int

    @property
    def slots(self) -> tuple[int, ...]:
        """Generated keyframes: the end of every segment."""
        return tuple(range(self.segment, self.frames, self.segment))


def canvas(frames: int) -> Canvas:
    """Canvas of a clip of `frames`: the segment that needs less padding."""
    check_dfr_frames(frames)
    content = frames - 1
    segment = min(SEGMENTS, key=lambda s: -content % s)
    return Canvas(content + -content % segment + 1, segment)


@dataclass(frozen=True)
class RoundTile:
    """One tile of a temporal round: pixel frames `start` .. `end` inclusive.

    `anchors` (kept) and `slots` (generated) are absolute frames. `drop` latent frames at the
    beginning repeat the previous tile and are cut before stitching.
    """

    start: int
    end: int
    drop: int
    anchors: tuple[int, ...]
    slots: tuple[int, ...]

    @property
    def frames(self) -> int:
        return self.end - self.start + 1

    @property
    def latents(self) -> slice:
        """Latent frames of the round's video that the tile covers."""
        return slice(self.start // TIME_FACTOR, self.end // TIME_FACTOR + 1)


def round_tiles(keyframes: Sequence[int], number: int) -> tuple[RoundTile, ...]:
    """Tiles of round `number` (from 1), given the carried keyframes in this round's frames.

    Keyframes end the segments. At most 2^number runs of whole segments, larger runs first; every
    tile but the first starts one segment early.
    """
    edges = (0, *keyframes)
    runs = min(2**number, len(keyframes))
    shortest, longer = divmod(len(keyframes), runs)
    tiles, done = [], 0
    for i in range(runs):
        last = done + shortest + (i < longer)
        tiles.append(_tile(edges, done - (i > 0), last, lead_in=i > 0))
        done = last
    return tuple(tiles)


def _tile(edges: tuple[int, ...], first: int, last: int, lead_in: bool) -> RoundTile:
    inner = edges[first : last + 1]
    return RoundTile(
        start=inner[0],
        end=inner[-1],
        # lead-in plus the seam latent, which belongs to the previous tile
        drop=(inner[1] - inner[0]) // TIME_FACTOR + 1 if lead_in else 0,
        anchors=tuple(edge for edge in inner if edge),  # frame 0 is no carried keyframe
        slots=tuple((a + b) // 2 for a, b in pairwise(inner)),
    )


def doubled(keyframes: Iterable[int]) -> tuple[int, ...]:
    """The same keyframes in the frames of the next round, where 2 (N - 1) + 1 frames play."""
    return tuple(2 * frame for frame in keyframes)


def carried(keyframes: Iterable[int], tiles: Iterable[RoundTile]) -> tuple[int, ...]:
    """Keyframes after a round: the anchors and every slot once, sorted.

    Where a lead-in generates a slot again, the earlier tile's content counts.
    """
    return tuple(sorted({*keyframes, *(slot for tile in tiles for slot in tile.slots)}))


def trimmed_frames(frames: int, rounds: int) -> int:
    """Frames of the finished clip: the request after `rounds` doublings, without the padding."""
    return (frames - 1) * 2**rounds + 1


def conditioning_fps(playback_fps: float) -> float:
    """Rate that positions are computed with: 60 for everything above 30."""
    return 60.0 if playback_fps > 30 else playback_fps


def slot_seeds(video: Tensor, slots: Sequence[int]) -> Tensor:
    """Seeds (B, C, K, H, W) of slots: the nearest latent frames of `video` (B, C, F, H, W)."""
    nearest = [round(slot / TIME_FACTOR) for slot in slots]
    return video.index_select(2, torch.tensor(nearest, device=video.device))


def audio_window(audio: Tensor, start: int, frames: int, playback_fps: float, fps: float) -> Tensor:
    """Stage-1 audio tokens (B, T, C) resampled for a tile of `frames` from pixel frame `start`.

    The window covers the tile's playback time; its length follows the conditioning rate `fps`.
    """
    count = audio_latents(frames, fps)
    first = AUDIO_LATENTS_PER_SECOND * start / playback_fps
    step = AUDIO_LATENTS_PER_SECOND * frames / (playback_fps * count)
    # start and step in double, indices and weights in float32, as in the reference
    index = first + torch.arange(count, dtype=torch.float32, device=audio.device) * step
    index = index.clamp(0, audio.shape[1] - 1)
    below = index.floor().long()
    above = (below + 1).clamp_max(audio.shape[1] - 1)
    weight = (index - below)[:, None]
    return (audio[:, below] * (1 - weight) + audio[:, above] * weight).to(audio.dtype)
