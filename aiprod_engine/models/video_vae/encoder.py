"""Encoder of the video VAE: 2.0, 2.3 and both 2.5 files; causal in time, deterministic."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import Tensor, nn

from ...errors import SizeError
from ...timing import check_size, snap_frames
from .blocks import Conv, Downsample, ResStage, activate, flat_layers, pad_time, patchify
from .config import ResampleConfig, VideoVAEConfig
from .statistics import PerChannelStatistics

_log = logging.getLogger(__name__)


class VideoEncoder(nn.Module):
    """Pixels (B, 3, 8k+1, 32h, 32w) in [-1, 1] -> normalised latent (B, C, k+1, h, w)."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        side = config.encoder
        patch_channels = side.image_channels * config.patch_size**2
        self.conv_in = Conv(patch_channels, side.first_width, side.padding)
        self.down_blocks = nn.ModuleList(
            (Downsample if isinstance(block, ResampleConfig) else ResStage)(block, side.padding)
            for block in side.blocks
        )
        # One channel more than the latent: the log-variance, which nothing reads.
        self.conv_out = Conv(side.last_width, config.latent_channels + 1, side.padding)
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the normalised latent; frames beyond the last 8k + 1 are dropped."""
        x = self.admit(self._whole_groups(pixels))
        x = self.conv_in(self.conv_in.pad_space(pad_time(x, causal=True)))
        for layer in self.layers():
            x = layer(x, causal=True)
        x = pad_time(x, causal=True)
        x = self.conv_out.pad_space(x)
        x = activate(x)
        return self.finish(self.conv_out(x)).to(pixels.dtype)

    def layers(self) -> Iterator[nn.Module]:
        """Residual blocks and downsamplers in order of execution."""
        return flat_layers(self.down_blocks)

    def admit(self, pixels: Tensor) -> Tensor:
        """Check the picture and return patches (B, 48, F, H/4, W/4) in the weights' dtype."""
        side, patch = self.config.encoder, self.config.patch_size
        if pixels.ndim != 5 or pixels.shape[1] != side.image_channels or not pixels.shape[2]:
            raise SizeError(
                f"the encoder needs pixels (B, {side.image_channels}, F, H, W), "
                f"got {tuple(pixels.shape)}"
            )
        height, width = pixels.shape[3:]
        cell = patch * side.space_factor
        check_size(height, width, cell)
        if side.padding == "reflect" and min(height, width) < 2 * cell:
            raise SizeError(
                f"this encoder reflects at the border and needs {2 * cell} pixels per axis, "
                f"got {height} x {width}"
            )
        return patchify(pixels.to(self.conv_in.conv.weight.dtype), patch)

    def finish(self, x: Tensor) -> Tensor:
        """Return the normalised mean from the output of `conv_out`."""
        return self.per_channel_statistics.normalize(x[:, : self.config.latent_channels])

    def _whole_groups(self, pixels: Tensor) -> Tensor:
        frames = pixels.shape[2]
        kept = snap_frames(frames, self.config.encoder.time_factor)
        if kept < frames:
            _log.warning("encoder drops the last %d of %d frames", frames - kept, frames)
        return pixels[:, :, :kept]
