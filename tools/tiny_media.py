"""Tiny pictures, sound and a movie for workflows that start from the user's own files."""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # appended: the host owns a module called `nodes`

from aiprod_engine.media.mp4 import Sound, write_mp4  # noqa: E402

RATE = 44_100


def picture(width: int, height: int, phase: float) -> np.ndarray:
    """A soft gradient with a disc whose place depends on `phase` in [0, 1]; (H, W, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width]
    disc = (x - width * (0.2 + 0.6 * phase)) ** 2 + (y - height / 2) ** 2 < (height / 5) ** 2
    channels = (x * 255 // width, y * 255 // height, np.where(disc, 255, 80))
    return np.stack(channels, -1).astype(np.uint8)


def tone(seconds: float) -> np.ndarray:
    """A rising tone, stereo (2, S) in [-0.5, 0.5]."""
    t = np.arange(round(seconds * RATE)) / RATE
    wave_form = 0.5 * np.sin(2 * np.pi * (220 + 110 * t) * t)
    return np.stack((wave_form, wave_form * 0.7)).astype(np.float32)


def write_media(folder: Path, width: int, height: int, frames: int, fps: float) -> None:
    """Write example.png, example_last.png, example.wav and example.mp4."""
    Image.fromarray(picture(width, height, 0.0)).save(folder / "example.png")
    Image.fromarray(picture(width, height, 1.0)).save(folder / "example_last.png")
    sound = tone(frames / fps)
    with wave.open(str(folder / "example.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound.T * 32767).astype("<i2").tobytes())
    clip = (torch.from_numpy(picture(width, height, i / frames))[None] for i in range(frames))
    write_mp4(folder / "example.mp4", clip, fps, Sound(torch.from_numpy(sound), RATE))
