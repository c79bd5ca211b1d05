"""Sound to latent and back: the two calls that pipelines make, and the fit to the picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
    with _exact_convolutions(mel.device):
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


@contextmanager
def _exact_convolutions(device: torch.device) -> Iterator[None]:
    """float32 convolutions in full precision: cuDNN's default, TF32, drops 13 bits of each input.

    In a vocoder these add up over about 108 layers, and its spectrogram is a convolution too.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    # torch 2.9 has a switch for convolutions alone, and one for all may not be readable beside it.
    has_own = hasattr(cudnn, "conv")
    owner, name = (cudnn.conv, "fp32_precision") if has_own else (cudnn, "allow_tf32")
    before = getattr(owner, name)
    setattr(owner, name, "ieee" if has_own else False)
    try:
        yield
    finally:
        setattr(owner, name, before)
