"""Sound to latent and back: the two calls that pipelines make, and the fit to the picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .decoder import AudioDecoder
from .encoder import AudioEncoder
from .mel import waveform_to_mel


@torch.no_grad()
def decode_audio(decoder: AudioDecoder, vocoder: nn.Module, latent: Tensor) -> tuple[Tensor, int]:
    """Normalised latent (B, z, T, bins / 4) -> float32 waveform (B, 2, S) and its rate in Hz."""
    mel = decoder(latent.to(decoder.conv_in.conv.weight))  # its dtype and device
    return vocoder(mel), vocoder.sample_rate


@torch.no_grad()
def encode_audio(encoder: AudioEncoder, waveform: Tensor, rate: int) -> Tensor:
    """Waveform (B, C, S) in [-1, 1] at any rate -> normalised latent (B, z, T, bins / 4)."""
    mel = waveform_to_mel(waveform, rate, encoder.config.mel_bins)
    return encoder(mel.to(encoder.conv_in.conv.weight))  # its dtype and device


def fit_track(waveform: Tensor, samples: int, pad: bool = False) -> Tensor:
    """(..., S) cropped to `samples`; a shorter track gets silence at its end only if `pad`."""
    missing = samples - waveform.shape[-1]
    if missing > 0 and pad:
        return F.pad(waveform, (0, missing))
    return waveform[..., :samples]
