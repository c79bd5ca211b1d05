"""Pictures and sounds -> normalised latents, with encoders that are loaded at their first use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import torch
from torch import Tensor

from ..media.mp4 import Sound
from ..models.audio_vae.codec import encode_audio
from ..models.audio_vae.encoder import AudioEncoder
from ..models.video_vae import VideoEncoder, stream_encode
from .guides import Encoders
from .networks import Networks


@contextmanager
def encoders(networks: Networks) -> Iterator[Encoders]:
    """Encoders for `encode_guides`; those that were used are disposed at the end."""
    with ExitStack() as stack:

        @cache
        def network(kind: str):
            return stack.enter_context(networks.use(kind))

        yield Encoders(
            video=lambda frames: encode_video(network("video_encoder"), frames),
            audio=lambda sound: encode_sound(network("audio_encoder"), sound),
        )


@torch.inference_mode()
def encode_video(encoder: VideoEncoder, frames: Iterable[Tensor]) -> Tensor:
    """Latent (1, C, F, h, w) float32 on the CPU of frames (1, 3, H, W) in [-1, 1].

    Frames are taken one at a time: memory does not depend on the length, the result is that of the
    whole clip. What follows the last 8k + 1 frames is dropped.
    """
    device = encoder.conv_in.conv.weight.device
    latents = stream_encode(encoder, (frame.to(device) for frame in frames))
    return torch.stack([latent.float().cpu() for latent in latents], dim=2)


@torch.inference_mode()
def encode_sound(encoder: AudioEncoder, sound: Sound) -> Tensor:
    """Latent (1, z, T, bins) float32 on the CPU of a waveform (C, S) at any rate."""
    return encode_audio(encoder, sound.waveform[None].float(), sound.rate).float().cpu()
