"""Reads video files: frames one by one, sound as a waveform."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import MismatchError
from .mp4 import Sound

Source = str | Path | BinaryIO


@dataclass(frozen=True)
class ClipInfo:
    """Size, length and rate of a video as it is shown (upright)."""

    frames: int
    height: int
    width: int
    fps: float
    has_sound: bool


def probe(source: Source) -> ClipInfo:
    """What a video file holds; decodes one frame, and counts packets where the header is silent."""
    height, width = next(read_frames(source, count=1)).shape[:2]
    with _opened(source) as container:
        stream = _video_stream(container)
        frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
        fps = float(stream.average_rate or stream.guessed_rate)
        return ClipInfo(frames, height, width, fps, bool(container.streams.audio))


def read_frames(source: Source, start: int = 0, count: int | None = None) -> Iterator[Tensor]:
    """Frames (H, W, 3) uint8 from index `start` on, at most `count`, turned upright."""
    end = None if count is None else start + count
    with _opened(source) as container:
        stream = _video_stream(container)
        stream.thread_type = "AUTO"
        for index, frame in enumerate(container.decode(stream)):
            if index == end:
                return
            if index >= start:
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                yield torch.from_numpy(np.ascontiguousarray(pixels))


def read_sound(source: Source, start: float = 0.0, seconds: float | None = None) -> Sound | None:
    """Sound of [start, start + seconds) at its own rate, or None if there is none.

    Mono stays mono, more than two channels are mixed down to stereo. A track that begins later
    than `start` gets leading silence, so that it stays in step with the picture.
    """
    with _opened(source) as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        rate = stream.rate
        wanted = None if seconds is None else round(seconds * rate)
        blocks = list(_sound_blocks(container, stream, start, wanted))
    waveform = np.concatenate(blocks, axis=1) if blocks else np.zeros((stream.channels, 0))
    return Sound(torch.from_numpy(waveform[:, :wanted].astype(np.float32)), rate)


def _sound_blocks(
    container: Any, stream: Any, start: float, wanted: int | None
) -> Iterator[np.ndarray]:
    """Blocks (C, n) from `start` on; at least `wanted` samples if the file has them."""
    import av

    layout = stream.layout.name if stream.channels <= 2 else "stereo"
    resampler = av.AudioResampler(format="fltp", layout=layout)  # s16 / 32768, s32 / 2^31
    skip, have = None, 0
    for frame in container.decode(stream):
        if skip is None:
            skip = round((start - (frame.time or 0.0)) * stream.rate)
        for converted in resampler.resample(frame):
            block = converted.to_ndarray()
            if skip < 0:
                block = np.pad(block, ((0, 0), (-skip, 0)))
                skip = 0
            kept = block[:, skip:]
            skip -= min(skip, block.shape[1])
            have += kept.shape[1]
            yield kept
        if wanted is not None and have >= wanted:
            return


def _opened(source: Source) -> Any:
    import av

    if not isinstance(source, (str, Path)):
        source.seek(0)
        return av.open(source)
    return av.open(str(source))


def _video_stream(container: Any) -> Any:
    if not container.streams.video:
        raise MismatchError("the file holds no video stream; choose a video file")
    return container.streams.video[0]
