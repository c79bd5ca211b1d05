"""Writes picture and sound to an MP4 while the picture is still being decoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from ..errors import SizeError

_SOUND_FRAME = 1024  # samples per AAC frame
_BT709 = 1  # code of primaries, transfer and matrix; players guess BT.601 for untagged small videos
_LIMITED = 1  # code of the 16 .. 235 range
_FLAGS = {"movflags": "use_metadata_tags"}  # keeps metadata keys that MP4 does not define


@dataclass(frozen=True)
class Sound:
    """A waveform (C, S) float in [-1, 1], mono or stereo, and its sample rate."""

    waveform: Tensor
    rate: int


def write_mp4(
    target: str | Path | BinaryIO,
    chunks: Iterable[Tensor],
    fps: float | Fraction,
    sound: Sound | None = None,
    crf: int = 18,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Encode `chunks` (F, H, W, 3) uint8 as H.264 yuv420p with AAC; returns the frames written.

    Chunks are taken one at a time and not kept, so memory does not grow with the clip. A path
    only comes into being once the clip is complete.
    """
    import av

    rate = Fraction(fps).limit_denominator(1001)
    written, video, track = 0, None, None
    with _destination(target) as file, av.open(file, "w", format="mp4", options=_FLAGS) as output:
        output.metadata.update(metadata or {})
        for chunk in chunks:
            if video is None:  # the first chunk tells the size
                video = _add_video(output, rate, chunk.shape[1:3], crf)
                track = _SoundTrack(output, sound) if sound else None
            for pixels in chunk.cpu().numpy():
                output.mux(video.encode(_frame(pixels, written, rate)))
                written += 1
            if track:
                track.write_until(float(written / rate))
        if video is None:
            raise SizeError("a video needs at least one frame, got none")
        output.mux(video.encode(None))
        if track:
            track.finish()
    return written


@contextmanager
def _destination(target: str | Path | BinaryIO) -> Iterator[str | BinaryIO]:
    """What to open for writing; a path is written under another name until it is complete."""
    if not isinstance(target, (str, Path)):
        yield target
        return
    path = Path(target)
    partial = path.with_name(path.name + ".part")
    try:
        yield str(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _add_video(output: Any, rate: Fraction, size: tuple[int, int], crf: int) -> Any:
    height, width = size
    if height % 2 or width % 2:
        raise SizeError(f"H.264 needs even sides, got {height} x {width}; crop or pad one pixel")
    stream = output.add_stream("libx264", rate=rate, options={"crf": str(crf)})
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    codec = stream.codec_context
    codec.color_primaries = codec.color_trc = codec.colorspace = _BT709
    codec.color_range = _LIMITED
    return stream


def _frame(pixels: np.ndarray, index: int, rate: Fraction) -> Any:
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
    frame.pts, frame.time_base = index, 1 / rate
    return frame


class _SoundTrack:
    """Feeds a waveform to the AAC encoder in step with the picture."""

    def __init__(self, output: Any, sound: Sound) -> None:
        channels, _ = sound.waveform.shape
        if channels not in (1, 2):
            raise SizeError(f"sound must have 1 or 2 channels, got {channels}")
        self.output = output
        self.layout = "stereo" if channels == 2 else "mono"
        self.rate = sound.rate
        self.samples = sound.waveform.detach().float().clamp(-1, 1).cpu().numpy()
        self.written = 0
        self.stream = output.add_stream("aac", rate=sound.rate, layout=self.layout)

    def write_until(self, seconds: float) -> None:
        """Encode whole frames of sound up to `seconds`."""
        end = min(int(seconds * self.rate), self.samples.shape[1])
        while self.written + _SOUND_FRAME <= end:
            self._write(_SOUND_FRAME)

    def finish(self) -> None:
        """Encode what is left."""
        while (left := self.samples.shape[1] - self.written) > 0:
            self._write(min(left, _SOUND_FRAME))
        self.output.mux(self.stream.encode(None))

    def _write(self, count: int) -> None:
        import av

        part = self.samples[:, self.written : self.written + count]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), "fltp", self.layout)
        frame.sample_rate, frame.pts, frame.time_base = (
            self.rate,
            self.written,
            Fraction(1, self.rate),
        )
        self.output.mux(self.stream.encode(frame))
        self.written += count
