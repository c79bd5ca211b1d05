"""Diffusion decoder of the 2.5 video VAE: attention to neighbours, then one denoising step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import MismatchError, SizeError
from ..video_vae.blocks import patchify, unpatchify
from ..video_vae.conditioning import SINUSOID, sinusoid
from ..video_vae.statistics import PerChannelStatistics
from .blocks import Block, DiffusionBlock, Upsample, frames_in_pieces, rms_norm
from .config import DiffusionDecoderConfig, Size
from .noise import DECODE_SEED, decode_noise


class DiffusionDecoder(nn.Module):
    """Normalised latent (B, C, k+1, h, w) -> pixels (B, 3, 8k+1, 32h, 32w), not clamped.

    Three stages look at the whole latent and make `cells`; the fourth and the diffusion stage can
    also work on tiles of these. Small latents are extended to what the windows need, and the
    pixels cut again.
    """

    def __init__(self, config: DiffusionDecoderConfig) -> None:
        super().__init__()
        self.config = config
        *stages, last = config.stages
        patch = config.image_channels * config.patch_size**2
        self.conv_in = nn.Linear(config.latent_channels, stages[0].channels)
        self.det_stages = nn.ModuleList(
            nn.ModuleList(Block(stage, config.head_dim) for _ in range(stage.depth))
            for stage in stages
        )
        self.upsamples = nn.ModuleList(Upsample(upsample) for upsample in config.upsamples)
        self.conv_in_x_t = nn.Linear(patch, last.channels)
        width = config.time_width
        self.t_embedder = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(SINUSOID, width), nn.SiLU(), nn.Linear(width, width))}
        )
        self.shared_adaln = nn.ModuleDict({"proj": nn.Linear(width, 7 * last.channels)})
        self.diff_blocks = nn.ModuleList(
            DiffusionBlock(last, config.head_dim, config.has_gates) for _ in range(last.depth)
        )
        self.norm_out = rms_norm(last.channels)
        self.conv_out = nn.Linear(last.channels, patch)
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)

    @property
    def like(self) -> Tensor:
        """A tensor whose device and dtype are those of the computation."""
        return self.norm_out.weight

    def forward(
        self,
        latent: Tensor,
        noise: Tensor | None = None,
        steps: int | None = None,
        seed: int = DECODE_SEED,
    ) -> Tensor:
        """Return pixels; `noise` is that of `seed` unless given, with the size of the canvas.

        All samples of a batch get the same noise, so that each decodes as it would alone.
        """
        context = self.context(self.cells(latent))
        if noise is None:
            noise = self.noise(self.config.extended(latent.shape[2:]), seed)
        pixels = self._denoised(noise, context, steps)
        return self.cropped(pixels, latent.shape[2:]).to(latent.dtype)

    def noise(self, latent: Size, seed: int) -> Tensor:
        """Noise (1, 3, F, H, W) for a whole latent (F, h, w), in the dtype of the weights."""
        frames, height, width = self.config.canvas(latent)
        frame = (self.config.image_channels, height, width)
        return decode_noise(seed, range(frames), frame, self.like.dtype).to(self.like.device)

    def cropped(self, pixels: Tensor, latent: Sequence[int]) -> Tensor:
        """The part of decoded pixels that a latent (F, h, w) asked for."""
        frames, height, width = self.config.canvas(latent)
        _, top, left = (
            (a - b) // 2 for a, b in zip(self.config.extended(latent), latent, strict=True)
        )
        cell_height, cell_width = height // latent[1], width // latent[2]
        rows = slice(top * cell_height, top * cell_height + height)
        columns = slice(left * cell_width, left * cell_width + width)
        return pixels[:, :, :frames, rows, columns]

    def cells(self, latent: Tensor) -> Tensor:
        """Input (B, T, H, W, C) of the fourth stage: 2 frames and 8 x 8 pixels a cell, and ghosts.

        T counts copies of the last latent too, see `config.ghosts`.
        """
        x = self.conv_in(self._admit(latent).movedim(1, -1))  # (B, T, H, W, C)
        for blocks, upsample in zip(self.det_stages[:-1], self.upsamples[:-1], strict=True):
            for block in blocks:
                block(x)
            x = upsample(x)
        return x

    def finish(
        self, cells: Tensor, noise: Tensor, steps: int | None = None, leads: bool = True
    ) -> Tensor:
        """Pixels (B, 3, F, H, W) of a tile of `cells`, as many frames as `noise` has.

        `leads` says whether the tile begins with the first cell of the clip.
        """
        return self._denoised(noise, self.context(cells, leads), steps)

    def context(self, cells: Tensor, leads: bool = True) -> Tensor:
        """Context (B, F, H/4, W/4, C) of the diffusion stage, ghosts included."""
        x = cells.clone(memory_format=torch.contiguous_format)  # blocks write in place
        for block in self.det_stages[-1]:
            block(x)
        return self.upsamples[-1](x, leads)

    def predict(self, x: Tensor, context: Tensor, time: float) -> Tensor:
        """Prediction of the clean pixels from noisy ones (B, 3, F, H, W) at `time` in (0, 1]."""
        x = self.conv_in_x_t(patchify(x.to(self.like), self.config.patch_size).movedim(1, -1))
        x = x.expand(len(context), *x.shape[1:]).contiguous()  # (B, F, H/4, W/4, C)
        modulation = self._modulation(time)
        for block in self.diff_blocks:
            block(x, context, modulation)
        out = x.new_empty(*x.shape[:-1], self.conv_out.out_features)
        for frames in frames_in_pieces(x):
            out[:, frames] = self.conv_out(self.norm_out(x[:, frames]))
        return unpatchify(out.movedim(-1, 1), self.config.patch_size)

    def _denoised(self, x: Tensor, context: Tensor, steps: int | None) -> Tensor:
        """Euler steps in float32 from time 1 to 1 / steps; the last prediction is the result."""
        context = context[:, : x.shape[2]]  # without ghosts
        steps = steps or self.config.steps
        times = torch.linspace(1, 1 / steps, steps).tolist()
        for time, following in pairwise(times):
            clean = self.predict(x, context, time).float()
            x = x.float() - (time - following) * ((x.float() - clean) / time)
        return self.predict(x, context, times[-1])

    def _modulation(self, time: float) -> Tensor:
        """(7, C) for all blocks of the diffusion stage."""
        scaled = torch.tensor(self.config.time_scale * time, device=self.like.device)
        embedding = self.t_embedder["mlp"](sinusoid(scaled).to(self.like))
        return self.shared_adaln["proj"](F.silu(embedding)).view(7, -1)

    def _admit(self, latent: Tensor) -> Tensor:
        """Check the latent; return it un-normalised, extended, and with ghosts behind it."""
        if latent.ndim != 5 or 0 in latent.shape:
            raise SizeError(f"the decoder needs latents (B, C, F, H, W), got {tuple(latent.shape)}")
        if latent.shape[1] != self.config.latent_channels:
            raise MismatchError(
                f"the video decoder reads {self.config.latent_channels} latent channels, "
                f"got {latent.shape[1]}; use a latent of the same model version"
            )
        x = self.per_channel_statistics.un_normalize(latent.to(self.like))
        frames, rows, columns = (
            a - b for a, b in zip(self.config.extended(x.shape[2:]), x.shape[2:], strict=True)
        )
        borders = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        return F.pad(x, (*borders, 0, frames + self.config.ghosts), mode="replicate")
