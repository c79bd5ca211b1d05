"""One table: kind -> how its network is built from its configuration section."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..errors import CheckpointError
from ..models.audio_vae.config import AudioVAEConfig, VocoderConfig
from ..models.audio_vae.decoder import AudioDecoder
from ..models.audio_vae.encoder import AudioEncoder
from ..models.audio_vae.vocoder import vocoder_for
from ..models.diffusion_vae import DiffusionDecoder, DiffusionDecoderConfig
from ..models.text.config import TextConnectorConfig
from ..models.text.connector import TextConnector
from ..models.text.gemma3 import Gemma3, Gemma3Config
from ..models.text.gemma4 import Gemma4, Gemma4Config
from ..models.text.vision import Gemma3Vision, VisionConfig
from ..models.transformer import Transformer, TransformerConfig
from ..models.upsampler import Upsampler, UpsamplerConfig
from ..models.video_vae import VideoDecoder, VideoEncoder, VideoVAEConfig
from .source import Source


@dataclass(frozen=True)
class Component:
    """`configure` reads the section (and the caller's modalities), `build` makes the module.

    `plain`: starts of layer names that are decoded when they are loaded: they multiply once per
    prompt. `float32`: its parameters are float32 whatever is asked for.
    """

    configure: Callable[[Source, str | None], object]
    build: Callable[[object], nn.Module]
    plain: tuple[str, ...] = ()
    float32: bool = False


def _transformer(source: Source, modalities: str | None) -> TransformerConfig:
    held = source.info.modalities or "av"
    wanted = modalities or held
    if held != "av" and wanted != held:
        raise CheckpointError(f"{source.info.name} holds the {held} stream only, not {wanted!r}")
    return TransformerConfig.from_metadata(source.section, wanted)


def _text_encoder(source: Source, _: str | None) -> object:
    is_gemma4 = "gemma4_12b" in source.info.components
    return (Gemma4Config if is_gemma4 else Gemma3Config).from_metadata(source.section)


def _text_vision(source: Source, _: str | None) -> VisionConfig:
    if not source.tensors:
        raise CheckpointError(
            f"to look at a picture the text encoder needs its vision tensors, {source.info.name} "
            "has none; choose a Gemma 3 file that has them, or give no picture"
        )
    return VisionConfig.from_metadata(source.section)


def _video_decoder(source: Source, _: str | None) -> VideoVAEConfig | DiffusionDecoderConfig:
    is_diffusion = "video_vae_diffusion" in source.info.components
    return (DiffusionDecoderConfig if is_diffusion else VideoVAEConfig).from_metadata(
        source.section
    )


def _sectioned(config: type) -> Callable[[Source, str | None], object]:
    return lambda source, _: config.from_metadata(source.section)


COMPONENTS: dict[str, Component] = {
    "transformer": Component(_transformer, Transformer),
    "video_encoder": Component(_sectioned(VideoVAEConfig), VideoEncoder),
    "video_decoder": Component(
        _video_decoder,
        lambda config: (
            DiffusionDecoder if isinstance(config, DiffusionDecoderConfig) else VideoDecoder
        )(config),
    ),
    "audio_encoder": Component(_sectioned(AudioVAEConfig), AudioEncoder),
    "audio_decoder": Component(_sectioned(AudioVAEConfig), AudioDecoder),
    # bf16 error compounds through about 108 convolutions and is audible.
    "vocoder": Component(_sectioned(VocoderConfig), vocoder_for, float32=True),
    "text_connector": Component(
        lambda source, _: TextConnectorConfig.from_metadata(source.section, source.shapes),
        TextConnector,
        plain=("text_embedding_projection.",),
    ),
    "text_encoder": Component(
        _text_encoder,
        lambda config: (Gemma4 if isinstance(config, Gemma4Config) else Gemma3)(config),
    ),
    "text_vision": Component(_text_vision, Gemma3Vision),
    "upsampler": Component(_sectioned(UpsamplerConfig), Upsampler),
}
