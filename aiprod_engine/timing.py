"""The one module that turns frames, seconds, latents and samples into each other.

Constants hold for 2.0, 2.3 and 2.5: VAE factors (8, 32, 32); audio runs at 16 kHz with hop 160 and
time compression 4 on the VAE side, hence 25 audio latents per second.
"""

from __future__ import annotations

import math

import numpy as np

from .errors import SizeError

TIME_FACTOR = 8
SPACE_FACTOR = 32
AUDIO_RATE = 16_000
AUDIO_HOP = 160
AUDIO_TIME_FACTOR = 4
AUDIO_LATENTS_PER_SECOND = AUDIO_RATE / AUDIO_HOP / AUDIO_TIME_FACTOR  # 25.0
SHORTEST_WAVEFORM = 1024  # samples at 16 kHz that a clip too short for the STFT (<= 512) gets


def latent_frames(frames: int, factor: int = TIME_FACTOR) -> int:
    """Latent frames of a clip of `frames` pixel frames (floors off-grid counts)."""
    return (frames - 1) // factor + 1


def pixel_frames(latents: int, factor: int = TIME_FACTOR) -> int:
    """Pixel frames that `latents` latent frames decode to: 8 (F' - 1) + 1."""
    return (latents - 1) * factor + 1


def snap_frames(frames: int, factor: int = TIME_FACTOR) -> int:
    """Largest frame count of the form 8k + 1 that is not above `frames` (at least 1)."""
    return (max(frames, 1) - 1) // factor * factor + 1


def snap_size(side: int, multiple: int = SPACE_FACTOR) -> int:
    """Largest multiple of `multiple` that is not above `side` (at least one)."""
    return max(side // multiple, 1) * multiple


def frames_for_seconds(seconds: float, fps: float, low: int = 1, high: int | None = None) -> int:
    """Frame count of the form 8k + 1 for a duration, kept within [low, high]."""
    wanted = max(low, round(seconds * fps))
    if high is not None:
        wanted = min(wanted, high)
    snapped = snap_frames(wanted)
    if snapped < low:
        snapped += TIME_FACTOR
        snapped = snapped if high is None else min(snapped, high)
    return snapped


def audio_latents(frames: int, fps: float) -> int:
    """Audio latent frames that belong to a clip: round half to even of 25 x seconds, at least 1."""
    return max(1, round(frames / fps * AUDIO_LATENTS_PER_SECOND))


def mel_frames(latents: int) -> int:
    """Mel frames that `latents` audio latents decode to: 4T - 3, at least 1."""
    return max(AUDIO_TIME_FACTOR * latents - (AUDIO_TIME_FACTOR - 1), 1)


def resampled_length(samples: int, source: int, target: int) -> int:
    """Samples after resampling; the reference takes the quotient in float32, so do we."""
    if source == target:
        return samples
    common = math.gcd(source, target)
    return math.ceil(np.float32(target // common * samples / (source // common)))


def encoded_mel_frames(samples_16k: int) -> int:
    """Mel frames of a waveform at 16 kHz (centred STFT, hop 160)."""
    return samples_16k // AUDIO_HOP + 1


def encoded_audio_latents(mel: int) -> int:
    """Audio latents that the encoder makes of `mel` frames: ceil(M / 4)."""
    return -(-mel // AUDIO_TIME_FACTOR)


def track_samples(frames: int, fps: float, rate: int) -> int:
    """Samples of a sound track exactly as long as the picture."""
    return round(frames / fps * rate)


def check_frames(frames: int) -> None:
    """Raise unless `frames` is 8k + 1."""
    if frames < 1 or (frames - 1) % TIME_FACTOR:
        low = snap_frames(frames)
        raise SizeError(
            f"frames must be 8k + 1, got {frames}; nearest: {low} or {low + TIME_FACTOR}"
        )


def check_size(height: int, width: int, multiple: int = SPACE_FACTOR) -> None:
    """Raise unless both sides are positive multiples of `multiple` (64 before a x2 stage)."""
    for name, value in (("height", height), ("width", width)):
        if value < multiple or value % multiple:
            low = max(value // multiple * multiple, multiple)
            raise SizeError(
                f"{name} must be a multiple of {multiple}, got {value}; "
                f"nearest: {low} or {low + multiple}"
            )
