"""Waveform to log-mel spectrogram, in float32 whatever the model's dtype (all versions)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import SizeError
from ...timing import AUDIO_HOP, AUDIO_RATE, SHORTEST_WAVEFORM
from .config import MEL_BINS
from .resample import resample

N_FFT = 1024
LOG_FLOOR = 1e-5
# The slaney mel scale is linear below 1000 Hz = 15 mel and logarithmic above.
_HZ_PER_MEL = 200.0 / 3
_KNEE_HZ = 1000.0
_KNEE_MEL = 15.0
_LOG_STEP = math.log(6.4) / 27.0


def to_stereo(waveform: Tensor) -> Tensor:
    """(B, C, S) -> (B, 2, S): mono twice, 5.1 and 7.1 mixed down, other counts averaged."""
    channels = waveform.shape[1]
    if channels == 2:
        return waveform
    if channels in (6, 8):  # L R C LFE Ls Rs [Lb Rb]
        left, right, centre, _, *around = waveform.unbind(1)
        gain = 1 + 0.707 * (channels // 2 - 1)  # 2.414 or 3.121: the sum of the weights
        sides = [
            (front + 0.707 * (centre + sum(around[i::2]))) / gain
            for i, front in enumerate((left, right))
        ]
        return torch.stack(sides, dim=1)
    return waveform.mean(dim=1, keepdim=True).expand(-1, 2, -1)


def mel_filterbank(bins: int = MEL_BINS) -> Tensor:
    """Triangles of unit area on the slaney mel scale, 0 to 8000 Hz, (513, bins), float32."""
    nyquist = AUDIO_RATE // 2
    frequencies = torch.linspace(0, nyquist, N_FFT // 2 + 1)
    edges = _mel_to_hz(torch.linspace(0, _hz_to_mel(nyquist), bins + 2))
    widths = edges[1:] - edges[:-1]
    slopes = edges[None] - frequencies[:, None]  # (frequencies, bins + 2)
    rising = -slopes[:, :-2] / widths[:-1]
    falling = slopes[:, 2:] / widths[1:]
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return triangles * (2 / (edges[2:] - edges[:-2]))


def waveform_to_mel(waveform: Tensor, rate: int, bins: int = MEL_BINS) -> Tensor:
    """(B, C, S) at any integer rate -> natural-log mel (B, 2, M, bins), M = S16 // 160 + 1.

    Clips of at most 512 samples at 16 kHz are too short for the reflected border: they get
    silence up to 1024 samples.
    """
    if waveform.ndim != 3:
        raise SizeError(f"a waveform is (batch, channels, samples), got {tuple(waveform.shape)}")
    x = resample(to_stereo(waveform.float()), rate, AUDIO_RATE)
    if x.shape[-1] <= N_FFT // 2:
        x = F.pad(x, (0, SHORTEST_WAVEFORM - x.shape[-1]))
    spectrum = torch.stft(
        x.flatten(0, 1),  # (B, 2, S) -> (B*2, S)
        n_fft=N_FFT,
        hop_length=AUDIO_HOP,
        window=torch.hann_window(N_FFT, device=x.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    magnitude = spectrum.abs().unflatten(0, x.shape[:2]).transpose(2, 3)  # (B, 2, M, 513)
    mel = magnitude @ mel_filterbank(bins).to(x.device)
    return mel.clamp(min=LOG_FLOOR).log()


def _hz_to_mel(hz: float) -> float:
    if hz < _KNEE_HZ:
        return hz / _HZ_PER_MEL
    return _KNEE_MEL + math.log(hz / _KNEE_HZ) / _LOG_STEP


def _mel_to_hz(mel: Tensor) -> Tensor:
    above = _KNEE_HZ * torch.exp(_LOG_STEP * (mel - _KNEE_MEL))
    return torch.where(mel < _KNEE_MEL, _HZ_PER_MEL * mel, above)
