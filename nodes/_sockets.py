"""Socket types of this pack and the payloads that travel on them.

Payloads are light and immutable: recipes and latents, never loaded weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from comfy_api.latest import io

from ..aiprod_engine.pipelines.guides import Guide
from ..aiprod_engine.sampling.guidance import Guidance
from ..aiprod_engine.types import AVLatent, TextContext
from ..aiprod_engine.weights import Info
from ..aiprod_engine.weights.lora.ic_lora import Reference
from ..aiprod_engine.weights.recipe import Recipe

Model = io.Custom("AIPROD_MODEL")
TextParts = io.Custom("AIPROD_TEXT_PARTS")
TextEncoder = io.Custom("AIPROD_TEXT_ENCODER")
VideoVAE = io.Custom("AIPROD_VIDEO_VAE")
AudioVAE = io.Custom("AIPROD_AUDIO_VAE")
Upsampler = io.Custom("AIPROD_UPSAMPLER")
Conditioning = io.Custom("AIPROD_CONDITIONING")
Guides = io.Custom("AIPROD_GUIDES")
Guider = io.Custom("AIPROD_GUIDER")
Latent = io.Custom("AIPROD_LATENT")  # payload: aiprod_engine.types.AVLatent


@dataclass(frozen=True)
class ModelPayload:
    """A transformer: how to load it, which release it belongs to, what its LoRAs say."""

    transformer: Recipe
    info: Info
    reference: Reference = Reference()

    def __repr__(self) -> str:
        return f"transformer {self.info.version}"


@dataclass(frozen=True)
class TextPartsPayload:
    """Text projection and connectors of a checkpoint; a text encoder completes them."""

    connector: Recipe
    infos: tuple[Info, ...]

    def __repr__(self) -> str:
        return f"text parts {self.infos[0].version}"


@dataclass(frozen=True)
class TextEncoderPayload:
    """Gemma, its tokenizer's files, and the connectors of the checkpoint that is sampled."""

    encoder: Recipe
    parts: TextPartsPayload

    @property
    def version(self) -> str:
        return self.parts.infos[0].version

    def __repr__(self) -> str:
        return f"text encoder for {self.version}"


@dataclass(frozen=True)
class VideoVAEPayload:
    """Video encoder and decoder of one file."""

    encoder: Recipe
    decoder: Recipe
    info: Info

    def __repr__(self) -> str:
        return f"video VAE {self.info.version}"


@dataclass(frozen=True)
class AudioVAEPayload:
    """Audio encoder, decoder and vocoder of one file."""

    encoder: Recipe
    decoder: Recipe
    vocoder: Recipe
    info: Info

    def __repr__(self) -> str:
        return f"audio VAE {self.info.version}"


@dataclass(frozen=True)
class UpsamplerPayload:
    """A latent upsampler."""

    upsampler: Recipe
    info: Info

    def __repr__(self) -> str:
        return f"upsampler {', '.join(self.info.components)}"


@dataclass(frozen=True)
class GuidesPayload:
    """Guides in the order of the wire, and the encoders that they need."""

    guides: tuple[Guide, ...] = ()
    video_vae: VideoVAEPayload | None = None
    audio_vae: AudioVAEPayload | None = None

    def __repr__(self) -> str:
        return f"{len(self.guides)} guides"


def with_guide(
    before: GuidesPayload | None,
    guide: Guide,
    video_vae: VideoVAEPayload | None = None,
    audio_vae: AudioVAEPayload | None = None,
) -> GuidesPayload:
    """The guides so far and one more; all of one wire are encoded by the same VAEs."""
    before = before or GuidesPayload()
    return GuidesPayload(
        (*before.guides, guide), video_vae or before.video_vae, audio_vae or before.audio_vae
    )


@dataclass(frozen=True)
class GuiderPayload:
    """Encoded prompts and how strongly each stream follows them.

    With `auto_blocks` the blocks of STG are chosen for the transformer that samples.
    """

    positive: TextContext
    negative: TextContext | None = None
    video: Guidance = Guidance()
    audio: Guidance = Guidance()
    auto_blocks: bool = False

    def __repr__(self) -> str:
        return f"guider video {self.video}, audio {self.audio}"


# socket type -> what travels on it
PAYLOADS = {
    "AIPROD_MODEL": ModelPayload,
    "AIPROD_TEXT_PARTS": TextPartsPayload,
    "AIPROD_TEXT_ENCODER": TextEncoderPayload,
    "AIPROD_VIDEO_VAE": VideoVAEPayload,
    "AIPROD_AUDIO_VAE": AudioVAEPayload,
    "AIPROD_UPSAMPLER": UpsamplerPayload,
    "AIPROD_CONDITIONING": TextContext,
    "AIPROD_GUIDES": GuidesPayload,
    "AIPROD_GUIDER": GuiderPayload,
    "AIPROD_LATENT": AVLatent,
}
