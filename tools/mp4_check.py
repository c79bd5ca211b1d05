"""Reads an MP4 back with PyAV and says what is in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av

AUDIO_LATENT_SECONDS = 0.04


@dataclass(frozen=True)
class Movie:
    """Decoded facts of a file, not what its container claims."""

    video_codec: str
    audio_codec: str | None
    frames: int
    width: int
    height: int
    fps: float
    audio_seconds: float
    sample_rate: int
    loudness: float  # root mean square over all samples and channels

    @property
    def video_seconds(self) -> float:
        return self.frames / self.fps


def read_movie(path: Path) -> Movie:
    """Decode every frame and sample of `path`."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        fps = float(video.average_rate)
        frames = [(frame.width, frame.height) for frame in container.decode(video)]
        video_codec = video.codec_context.name
    with av.open(str(path)) as container:
        tracks = container.streams.audio
        samples, energy, values, rate, audio_codec = 0, 0.0, 0, 0, None
        if tracks:
            rate, audio_codec = tracks[0].rate, tracks[0].codec_context.name
            for frame in container.decode(tracks[0]):
                samples += frame.samples
                sound = frame.to_ndarray().astype(float)
                energy, values = energy + (sound**2).sum(), values + sound.size
            # the track's own duration leaves out what the encoder padded its last frame with
            samples = min(samples, round(float(tracks[0].duration * tracks[0].time_base) * rate))
    width, height = frames[0]
    return Movie(
        video_codec, audio_codec, len(frames), width, height, fps,
        samples / rate if rate else 0.0, rate, (energy / max(values, 1)) ** 0.5,
    )  # fmt: skip


def problems(movie: Movie, frames: int, width: int, height: int, fps: float) -> list[str]:
    """What is wrong with a movie that should have this size, length and a sound track."""
    found = []
    if movie.video_codec != "h264":
        found.append(f"video is {movie.video_codec}, not H.264")
    if movie.audio_codec != "aac":
        found.append(f"audio is {movie.audio_codec}, not AAC")
    if (movie.frames, movie.width, movie.height) != (frames, width, height):
        found.append(
            f"{movie.width}x{movie.height}, {movie.frames} frames; "
            f"expected {width}x{height}, {frames}"
        )
    if abs(movie.fps - fps) > 1e-3:
        found.append(f"{movie.fps} frames per second, expected {fps}")
    if abs(movie.audio_seconds - frames / fps) > AUDIO_LATENT_SECONDS:
        found.append(f"sound lasts {movie.audio_seconds:.3f} s, picture {frames / fps:.3f} s")
    return found
