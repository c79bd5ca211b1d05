"""A host VIDEO whose frames are decoded while the host writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from fractions import Fraction

import torch
from comfy_api.latest import Input, InputImpl, Types
from torch import Tensor

from ..aiprod_engine.media.mp4 import Sound, write_mp4
from ..aiprod_engine.media.pixels import to_image, to_uint8
from ..aiprod_engine.types import AVLatent

OpenChunks = Callable[[], AbstractContextManager[Iterator[Tensor]]]


class StreamedVideo(Input.Video):
    """A clip with its sound. Saving pulls frames out of the decoder and keeps none of them.

    `open_chunks` is a context manager that yields pixels (1, 3, f, H, W) in time order.
    """

    def __init__(self, clip: AVLatent, open_chunks: OpenChunks, sound: Sound | None):
        self.clip, self.open_chunks, self.sound = clip, open_chunks, sound

    def __repr__(self) -> str:
        return f"video {self.clip.width}x{self.clip.height}, {self.clip.frames} frames"

    def save_to(self, path, format="auto", codec="auto", metadata=None) -> None:  # noqa: A002
        """Write an MP4 (H.264, AAC); memory does not grow with the length of the clip."""
        words = {key: json.dumps(value) for key, value in (metadata or {}).items()}
        with self.open_chunks() as chunks:
            frames = (to_uint8(chunk) for chunk in chunks)
            write_mp4(path, frames, self.clip.fps, self.sound, metadata=words)

    def get_components(self):
        """All frames at once, for nodes that want images."""
        with self.open_chunks() as chunks:
            images = torch.cat([to_image(chunk).cpu() for chunk in chunks])
        audio = None
        if self.sound is not None:
            audio = {"waveform": self.sound.waveform[None], "sample_rate": self.sound.rate}
        return Types.VideoComponents(images=images, audio=audio, frame_rate=self.get_frame_rate())

    def as_trimmed(self, start_time=None, duration=None, strict_duration=False):
        """A part of the clip, as the host's own component video."""
        whole = InputImpl.VideoFromComponents(self.get_components())
        return whole.as_trimmed(start_time, duration, strict_duration)

    def get_dimensions(self) -> tuple[int, int]:
        return self.clip.width, self.clip.height

    def get_duration(self) -> float:
        return self.clip.frames / self.clip.fps

    def get_frame_count(self) -> int:
        return self.clip.frames

    def get_frame_rate(self) -> Fraction:
        return Fraction(self.clip.fps).limit_denominator(1001)

    def get_container_format(self) -> str:
        return "mp4"
