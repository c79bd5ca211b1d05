"""The vocoders: one stage at 24 kHz (2.0), or 16 kHz with bandwidth extension to 48 kHz (2.3, 2.5).

Their weights stay in float32: bf16 error compounds through about 108 convolutions and is audible.
The loader keeps them so; the forward passes lift only their input.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activations import upsample
from .config import MEL_BINS, BandwidthConfig, VocoderConfig
from .generator import Generator
from .mel import LOG_FLOOR


class Vocoder(Generator):
    """The one-stage vocoder of 2.0."""

    def __init__(self, config: VocoderConfig):
        super().__init__(config.generator)
        self.sample_rate = config.sample_rate


class STFTBasis(nn.Module):
    """Windowed Fourier basis as stored: (n_fft + 2, 1, n_fft), real rows before imaginary ones.

    The file also has an `inverse_basis`, which nothing reads and the loader drops.
    """

    def __init__(self, n_fft: int):
        super().__init__()
        self.register_buffer("forward_basis", torch.zeros(n_fft + 2, 1, n_fft))


class MelSTFT(nn.Module):
    """Log-mel spectrogram of the 16 kHz wave with stored bases; causal, no padding at the end."""

    def __init__(self, config: BandwidthConfig):
        super().__init__()
        self.hop, self.n_fft = config.hop_length, config.n_fft
        self.stft_fn = STFTBasis(config.n_fft)
        self.register_buffer("mel_basis", torch.zeros(MEL_BINS, config.n_fft // 2 + 1))

    def forward(self, wave: Tensor) -> Tensor:
        """Waveform (B, 2, N), N a multiple of the hop -> log-mel (B, 2, N / hop, 64)."""
        x = F.pad(wave.flatten(0, 1)[:, None], (self.n_fft - self.hop, 0))  # (B*2, 1, N + past)
        spectrum = F.conv1d(x, self.stft_fn.forward_basis.to(x.dtype), stride=self.hop)
        real, imaginary = spectrum.chunk(2, dim=1)  # (B*2, n_fft/2 + 1, frames) each
        magnitude = (real.square() + imaginary.square()).sqrt()
        mel = self.mel_basis.to(x.dtype) @ magnitude
        log_mel = mel.clamp(min=LOG_FLOOR).log().transpose(1, 2)
        return log_mel.unflatten(0, wave.shape[:2])  # (B*2, frames, 64) -> (B, 2, frames, 64)


def hann_kernel(ratio: int) -> Tensor:
    """Hann-windowed sinc (1, 1, 14 * ratio + 1) of the skip path: width 7, roll-off 0.99."""
    t = (torch.arange(14 * ratio + 1) / ratio - 7) * 0.99
    window = torch.cos(t.clamp(-6, 6) * math.pi / 12).square()
    return (torch.sinc(t) * window * 0.99 / ratio)[None, None]


def hann_upsample(x: Tensor, ratio: int) -> Tensor:
    """x (B, C, L) -> (B, C, ratio * L); the file stores no filter for this one."""
    kernel = hann_kernel(ratio).to(x.device)
    return upsample(x, kernel, ratio, pad=7, crop=(14 * ratio, 13 * ratio + 1))


class BandwidthExtendedVocoder(nn.Module):
    """The two-stage vocoder of 2.3 and 2.5: the second stage adds what lies above 8 kHz."""

    def __init__(self, config: VocoderConfig):
        super().__init__()
        self.sample_rate = config.sample_rate
        self.ratio, self.hop = config.bandwidth.ratio, config.bandwidth.hop_length
        self.vocoder = Generator(config.generator)
        self.bwe_generator = Generator(config.bandwidth.generator)
        self.mel_stft = MelSTFT(config.bandwidth)

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel (B, 2, M, 64) -> waveform (B, 2, S) in [-1, 1], float32."""
        low = self.vocoder(mel)  # (B, 2, N) at 16 kHz
        x = F.pad(low, (0, -low.shape[-1] % self.hop))
        high = self.bwe_generator(self.mel_stft(x))
        wave = (high + hann_upsample(x, self.ratio)).clamp(-1, 1)
        return wave[..., : low.shape[-1] * self.ratio]


def vocoder_for(config: VocoderConfig) -> nn.Module:
    """The vocoder that the configuration describes; keys lose one leading `vocoder.`."""
    return BandwidthExtendedVocoder(config) if config.bandwidth else Vocoder(config)
