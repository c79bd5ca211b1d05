"""The joint audio-video diffusion transformer of 2.0, 2.3 and 2.5."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import MismatchError
from ...types import Modality, Perturbation
from .adaln import AdaLN, modulate
from .attention import strength_bias, text_bias
from .block import Block, CrossInputs, StreamInputs
from .config import StreamConfig, TransformerConfig
from .mlp import CaptionProjection
from .perturbations import plan_keep
from .rope import rope_table


class Transformer(nn.Module):
    """Predicts the velocity of video and audio tokens; parameter names are the checkpoint's keys.

    `modalities`, the configuration's unless given, "video" or "audio" builds that stream alone.
    `ready_blocks` is given the blocks of `streamable` and yields each one when it can compute:
    whoever streams weights puts itself there.
    """

    streamable = "transformer_blocks"

    def __init__(self, config: TransformerConfig, modalities: str | None = None) -> None:
        super().__init__()
        self.config = config = replace(config, modalities=modalities or config.modalities)
        for stream in config.streams:
            self._add_stream(stream)
        if config.modalities == "av":
            self._add_cross(config.video)
            self._add_cross(config.audio)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.ready_blocks: Callable[[Iterable[Block]], Iterable[Block]] = iter

    def _add_stream(self, stream: StreamConfig) -> None:
        c, p, dim = self.config, stream.prefix, stream.dim
        self.add_module(p + "patchify_proj", nn.Linear(stream.in_channels, dim))
        self.add_module(p + "adaln_single", AdaLN(dim, c.block_rows))
        if c.has_prompt_adaln:
            self.add_module(p + "prompt_adaln_single", AdaLN(dim, 2))
        if not c.caption_proj_before_connector:
            self.add_module(p + "caption_projection", CaptionProjection(c.caption_channels, dim))
        if stream.has_keyframe_marker:
            self.keyframes_abs_pos_embedding = nn.Parameter(torch.zeros(1, dim))
        self.register_parameter(p + "scale_shift_table", nn.Parameter(torch.zeros(2, dim)))
        self.add_module(p + "proj_out", nn.Linear(dim, stream.out_channels))

    def _add_cross(self, stream: StreamConfig) -> None:
        self.add_module(f"av_ca_{stream.name}_scale_shift_adaln_single", AdaLN(stream.dim, 4))
        self.add_module(f"av_ca_{stream.update}_gate_adaln_single", AdaLN(stream.dim, 1))

    def forward(
        self,
        video: Modality | None,
        audio: Modality | None,
        perturbations: Sequence[Sequence[Perturbation]] | None = None,
        on_block: Callable[[int], None] | None = None,
        feed_forward_parts: int = 1,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the velocities (B, T, C) of both streams, None for an absent one.

        `perturbations` holds one list of records per sample. `on_block` is called with its index
        before every block; raising there cancels the forward. Where all tokens of a sample share
        one timestep, `timesteps` (B, 1, 1) is enough and the modulation is computed once; where
        there are n, (B, n, 1) and the `levels` of the tokens are. More `feed_forward_parts` hold
        less at a time and differ in the last bit, as products of fewer rows may.
        """
        self._check(video, audio)
        vx, v_embedded, v_inputs = self._enter(self.config.video, video, audio)
        ax, a_embedded, a_inputs = self._enter(self.config.audio, audio, video)
        keep = plan_keep(perturbations, self.config.num_layers, vx if vx is not None else ax)
        for index, block in enumerate(self.ready_blocks(self.transformer_blocks)):
            if on_block is not None:
                on_block(index)
            vx, ax = block(vx, ax, v_inputs, a_inputs, keep[index], feed_forward_parts)
        return (
            self._leave(self.config.video, vx, v_embedded, v_inputs),
            self._leave(self.config.audio, ax, a_embedded, a_inputs),
        )

    def _enter(
        self, stream: StreamConfig, own: Modality | None, other: Modality | None
    ) -> tuple[Tensor | None, Tensor | None, StreamInputs | None]:
        """Return tokens (B, T, D), timestep embedding (B, n, D) and what the blocks need."""
        if own is None:
            return None, None, None
        x = self._part(stream, "patchify_proj")(own.tokens)  # (B, T, D)
        if stream.has_keyframe_marker and own.keyframes_mask is not None:
            x = x + (own.keyframes_mask > 0).to(x.dtype) * self.keyframes_abs_pos_embedding
        t = own.timesteps[..., 0] * self.config.timestep_scale_multiplier  # (B, n)
        modulation, embedded = self._part(stream, "adaln_single")(t, x.dtype)
        return (
            x,
            embedded,
            StreamInputs(
                rope=rope_table(own.positions, self.config.self_rope(stream), x.dtype),
                modulation=modulation,
                context=self._context(stream, own.context),
                prompt=self._prompt(stream, own.sigma, x.dtype),
                context_bias=text_bias(own.context_mask, x.dtype),
                self_bias=strength_bias(own.attention_mask, x.dtype),
                cross=self._cross(stream, own, other),
                updated=own.enabled and x.shape[1] > 0,
                levels=own.levels,
            ),
        )

    def _context(self, stream: StreamConfig, context: Tensor) -> Tensor:
        if self.config.caption_proj_before_connector:
            return context
        return self._part(stream, "caption_projection")(context)

    def _prompt(self, stream: StreamConfig, sigma: Tensor, dtype: torch.dtype) -> Tensor | None:
        if not self.config.has_prompt_adaln:
            return None
        t = sigma[:, None] * self.config.timestep_scale_multiplier  # (B, 1)
        return self._part(stream, "prompt_adaln_single")(t, dtype)[0]

    def _cross(
        self, stream: StreamConfig, own: Modality, other: Modality | None
    ) -> CrossInputs | None:
        """Own timesteps scale and shift; the other stream's sigma gates what it adds to us."""
        if other is None or 0 in (own.tokens.shape[1], other.tokens.shape[1]):
            return None
        c, dtype = self.config, own.tokens.dtype
        gate_factor = c.av_ca_timestep_scale_multiplier / c.timestep_scale_multiplier
        own_t = own.timesteps[..., 0] * c.timestep_scale_multiplier  # (B, n)
        other_t = other.sigma[:, None] * c.timestep_scale_multiplier * gate_factor  # (B, 1)
        scale_shift = getattr(self, f"av_ca_{stream.name}_scale_shift_adaln_single")
        gate = getattr(self, f"av_ca_{stream.update}_gate_adaln_single")
        return CrossInputs(
            rope=rope_table(own.positions[:, :1], c.cross_rope(), dtype),  # time axis, in seconds
            scale_shift=scale_shift(own_t, dtype)[0],
            gate=gate(other_t, dtype)[0],
            levels=own.levels,
        )

    def _leave(
        self,
        stream: StreamConfig,
        x: Tensor | None,
        embedded: Tensor | None,
        inputs: StreamInputs | None,
    ) -> Tensor | None:
        if x is None:
            return None
        table = self._part(stream, "scale_shift_table").to(x.dtype)
        shift, scale = (row + embedded for row in table)  # (B, n, D) each
        x = F.layer_norm(x, x.shape[-1:], eps=self.config.norm_eps)
        return self._part(stream, "proj_out")(modulate(x, scale, shift, inputs.levels))

    def _part(self, stream: StreamConfig, name: str) -> nn.Module | nn.Parameter:
        return getattr(self, stream.prefix + name)

    def _check(self, video: Modality | None, audio: Modality | None) -> None:
        if video is None and audio is None:
            raise MismatchError("the transformer needs a video or an audio stream, found neither")
        for stream, own in ((self.config.video, video), (self.config.audio, audio)):
            if own is None:
                continue
            if stream not in self.config.streams:
                raise MismatchError(
                    f"a transformer built for {self.config.modalities} takes no {stream.name} "
                    f"stream; build it with modalities 'av' or pass None"
                )
            for what, found, wanted in self._widths(stream, own):
                if found != wanted:
                    raise MismatchError(f"{stream.name} {what} must be {wanted}, found {found}")

    def _widths(self, stream: StreamConfig, own: Modality) -> tuple[tuple[str, int, int], ...]:
        c = self.config
        context = stream.dim if c.caption_proj_before_connector else c.caption_channels
        return (
            ("channels per token", own.tokens.shape[-1], stream.in_channels),
            ("context width", own.context.shape[-1], context),
            ("position axes", own.positions.shape[1], len(stream.max_pos)),
        )
