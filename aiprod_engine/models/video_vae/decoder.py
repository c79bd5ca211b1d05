"""Convolutional decoder of the video VAE: 2.0, 2.3 and the 2.5 conv file."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ...errors import MismatchError, SizeError, UnsupportedConfig
from .blocks import (
    Conv,
    Modulation,
    ResStage,
    Upsample,
    activate,
    flat_layers,
    pad_time,
    unpatchify,
)
from .conditioning import TimeEmbedder
from .config import ResampleConfig, VideoVAEConfig
from .statistics import PerChannelStatistics

# Conditioned decoders only (0.9.x lineage).
DECODE_TIME = 0.05
NOISE_SCALE = 0.025


class VideoDecoder(nn.Module):
    """Normalised latent (B, C, k+1, h, w) -> pixels (B, 3, 8k+1, 32h, 32w), not clamped.

    Released decoders look into the future (`causal_decoder` false): each pixel frame depends on
    later latents too.
    """

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        if config.decoder is None:
            raise UnsupportedConfig(
                "this configuration describes a diffusion decoder; build it as DiffusionDecoder"
            )
        self.config = config
        side = config.decoder
        self.causal = config.causal_decoder
        self.conv_in = Conv(config.latent_channels, side.first_width, side.padding)
        self.up_blocks = nn.ModuleList(
            Upsample(block, side.padding)
            if isinstance(block, ResampleConfig)
            else ResStage(block, side.padding, self._embedder(4, block.channels))
            for block in side.blocks
        )
        patch_channels = side.image_channels * config.patch_size**2
        self.conv_out = Conv(side.last_width, patch_channels, side.padding)
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)
        if config.timestep_conditioning:
            self.register_buffer("timestep_scale_multiplier", torch.tensor(1000.0))
            self.last_time_embedder = self._embedder(2, side.last_width)
            self.last_scale_shift_table = nn.Parameter(torch.zeros(2, side.last_width))

    @property
    def like(self) -> Tensor:
        """A tensor whose device and dtype are those of the computation."""
        return self.conv_in.conv.weight

    def forward(
        self, latent: Tensor, time: float = DECODE_TIME, noise: Tensor | None = None
    ) -> Tensor:
        """Return pixels; `time` and standard normal `noise` matter to conditioned decoders only."""
        if self.config.timestep_conditioning and noise is not None:
            latent = NOISE_SCALE * noise + (1 - NOISE_SCALE) * latent
        x = self.admit(latent)
        x = self.conv_in(self.conv_in.pad_space(pad_time(x, self.causal)))
        for layer, embedding in self.layers(time):
            x = layer(x, self.causal) if embedding is None else layer(x, self.causal, embedding)
        x = pad_time(x, self.causal)
        x = self.conv_out.pad_space(x)
        x = activate(x, self.last_modulation(time))
        return unpatchify(self.conv_out(x), self.config.patch_size).to(latent.dtype)

    def admit(self, latent: Tensor) -> Tensor:
        """Check the latent and return it un-normalised, in the weights' dtype."""
        if latent.ndim != 5 or 0 in latent.shape:
            raise SizeError(f"the decoder needs latents (B, C, F, H, W), got {tuple(latent.shape)}")
        if latent.shape[1] != self.config.latent_channels:
            raise MismatchError(
                f"the video decoder reads {self.config.latent_channels} latent channels, "
                f"got {latent.shape[1]}; use a latent of the same model version"
            )
        if self.config.decoder.padding == "reflect" and min(latent.shape[3:]) < 2:
            raise SizeError(
                f"this decoder (2.0) needs at least 2 x 2 latents (64 x 64 pixels), "
                f"got {latent.shape[3]} x {latent.shape[4]}"
            )
        return self.per_channel_statistics.un_normalize(latent.to(self.conv_in.conv.weight.dtype))

    def layers(self, time: float = DECODE_TIME) -> Iterator[tuple[nn.Module, Tensor | None]]:
        """Residual blocks and upsamplers in order of execution, with their time embedding."""
        for block in self.up_blocks:
            embedding = None
            if isinstance(block, ResStage) and self.config.timestep_conditioning:
                embedding = block.time_embedder(self._scaled(time))  # (4, C)
            for layer in flat_layers([block]):
                yield layer, embedding

    def last_modulation(self, time: float = DECODE_TIME) -> Modulation | None:
        """Shift and scale before the last SiLU."""
        if not self.config.timestep_conditioning:
            return None
        rows = self.last_scale_shift_table + self.last_time_embedder(self._scaled(time))
        return Modulation(*rows)

    def _scaled(self, time: float) -> Tensor:
        return self.timestep_scale_multiplier * time

    def _embedder(self, rows: int, channels: int) -> TimeEmbedder | None:
        return TimeEmbedder(rows, channels) if self.config.timestep_conditioning else None
