"""One transformer block: self-attention, text, audio <-> video, feed-forward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adaln import add_rows, modulate, row_of_tokens
from .attention import Attention
from .config import StreamConfig, TransformerConfig
from .mlp import FeedForward
from .perturbations import BlockKeep, Keep
from .rope import Rope

# Rows of the modulation tables. The audio-video table puts scale before shift, the others do not.
_SELF, _FEED_FORWARD, _TEXT = range(3), range(3, 6), range(6, 9)  # shift, scale, gate
_PROMPT = range(2)  # shift, scale
_A2V, _V2A = range(2), range(2, 4)  # scale, shift
_CROSS_GATE = 4
_GRID = 256  # tokens: parts of a feed-forward are multiples, as the kernels' tiles are


@dataclass(frozen=True)
class CrossInputs:
    """A stream's side of audio-video attention; `gate` belongs to the update *of* this stream.

    `rope` over time only, `scale_shift` (B, n, 4, D), `gate` (B, 1, 1, D); `levels` as below.
    """

    rope: Rope
    scale_shift: Tensor
    gate: Tensor
    levels: Tensor | None = None


@dataclass(frozen=True)
class StreamInputs:
    """What a stream brings to every block, the same through the whole depth.

    `modulation` (B, n, K, D) holds rows for every token, one for all, or one per noise level, of
    which `levels` (B, T) says the token's. `context` (B, L, D), `prompt` (B, 1, 2, D) or None,
    additive `self_bias` (B, 1, T, T) and `context_bias` (B, 1, 1, L). `cross` is None without a
    partner; a stream that is not `updated` still serves its partner as context.
    """

    rope: Rope
    modulation: Tensor
    context: Tensor
    prompt: Tensor | None = None
    context_bias: Tensor | None = None
    self_bias: Tensor | None = None
    cross: CrossInputs | None = None
    updated: bool = True
    levels: Tensor | None = None


class StreamLayers(NamedTuple):
    """The layers of one stream within a block."""

    attn1: Attention
    attn2: Attention
    ff: FeedForward
    table: Tensor
    prompt_table: Tensor | None


class CrossSide(NamedTuple):
    """One stream in audio-video attention: normalised `x` (B, T, D), its table and its inputs."""

    x: Tensor
    table: Tensor
    inputs: CrossInputs


class Block(nn.Module):
    """Updates both residual streams once; a stream that is None or not updated passes through."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        for stream in config.streams:
            self._add_stream(stream, config)
        if config.modalities == "av":
            self._add_cross(config)

    def _add_stream(self, stream: StreamConfig, config: TransformerConfig) -> None:
        p, dim, heads = stream.prefix, stream.dim, config.num_attention_heads
        options = {"eps": config.norm_eps, "gated": config.apply_gated_attention}
        for name in ("attn1", "attn2"):
            self.add_module(p + name, Attention(dim, dim, heads, stream.head_dim, **options))
        self.add_module(p + "ff", FeedForward(dim, stream.ff_bias))
        self._add_table(p + "scale_shift_table", config.block_rows, dim)
        if config.cross_attention_adaln:
            self._add_table(p + "prompt_scale_shift_table", len(_PROMPT), dim)
        else:
            self.register_parameter(p + "prompt_scale_shift_table", None)

    def _add_cross(self, config: TransformerConfig) -> None:
        video, audio, heads = config.video, config.audio, config.num_attention_heads
        options = {"eps": config.norm_eps, "gated": config.apply_gated_attention}
        # Both directions work in the width of the audio stream.
        self.audio_to_video_attn = Attention(video.dim, audio.dim, heads, audio.head_dim, **options)
        self.video_to_audio_attn = Attention(audio.dim, video.dim, heads, audio.head_dim, **options)
        self._add_table("scale_shift_table_a2v_ca_video", _CROSS_GATE + 1, video.dim)
        self._add_table("scale_shift_table_a2v_ca_audio", _CROSS_GATE + 1, audio.dim)

    def _add_table(self, name: str, rows: int, dim: int) -> None:
        self.register_parameter(name, nn.Parameter(torch.zeros(rows, dim)))

    def forward(
        self,
        vx: Tensor | None,
        ax: Tensor | None,
        video: StreamInputs | None,
        audio: StreamInputs | None,
        keep: BlockKeep,
        parts: int = 1,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the residual streams `vx` (B, T, D) and `ax` (B, S, A) after this block.

        The feed-forwards take their tokens in up to `parts` parts, to hold less at a time.
        """
        video_runs = video is not None and video.updated
        audio_runs = audio is not None and audio.updated
        if video_runs:
            vx = self._self_attention(vx, video, self._layers(""), keep.video_self)
            vx = self._text_attention(vx, video, self._layers(""))
        if audio_runs:
            ax = self._self_attention(ax, audio, self._layers("audio_"), keep.audio_self)
            ax = self._text_attention(ax, audio, self._layers("audio_"))
        if video is not None and video.cross is not None:
            # Both directions read the streams as they are before either update.
            v = CrossSide(self._norm(vx), self.scale_shift_table_a2v_ca_video, video.cross)
            a = CrossSide(self._norm(ax), self.scale_shift_table_a2v_ca_audio, audio.cross)
            if video_runs and keep.a2v is not False:
                vx = vx + self._cross_attention(self.audio_to_video_attn, _A2V, v, a, keep.a2v)
            if audio_runs and keep.v2a is not False:
                ax = ax + self._cross_attention(self.video_to_audio_attn, _V2A, a, v, keep.v2a)
            del v, a  # what is normalised would lie there through the feed-forward
        if video_runs:
            vx = self._feed_forward(vx, video, self._layers(""), parts)
        if audio_runs:
            ax = self._feed_forward(ax, audio, self._layers("audio_"), parts)
        return vx, ax

    def _layers(self, prefix: str) -> StreamLayers:
        names = ("attn1", "attn2", "ff", "scale_shift_table", "prompt_scale_shift_table")
        return StreamLayers(*(getattr(self, prefix + name) for name in names))

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)

    def _self_attention(
        self, x: Tensor, s: StreamInputs, layers: StreamLayers, keep: Keep
    ) -> Tensor:
        shift, scale, gate = add_rows(layers.table, s.modulation, _SELF)
        query = modulate(self._norm(x), scale, shift, s.levels)
        out = layers.attn1(query, mask=s.self_bias, rope=s.rope, keep=keep)
        return x + row_of_tokens(gate, s.levels) * out

    def _text_attention(self, x: Tensor, s: StreamInputs, layers: StreamLayers) -> Tensor:
        if layers.prompt_table is None:  # 2.0: text attention is neither modulated nor gated
            return x + layers.attn2(self._norm(x), s.context, s.context_bias)
        prompt_table = layers.prompt_table.to(x.dtype)
        prompt_shift, prompt_scale = add_rows(prompt_table, s.prompt, _PROMPT)
        context = modulate(s.context, prompt_scale, prompt_shift)  # not normalised
        shift, scale, gate = add_rows(layers.table, s.modulation, _TEXT)
        query = modulate(self._norm(x), scale, shift, s.levels)
        out = layers.attn2(query, context, s.context_bias)
        return x + row_of_tokens(gate, s.levels) * out

    def _cross_attention(
        self, attention: Attention, rows: range, query: CrossSide, context: CrossSide, keep: Keep
    ) -> Tensor:
        out = attention(
            _modulated_side(query, rows),
            _modulated_side(context, rows),
            rope=query.inputs.rope,
            key_rope=context.inputs.rope,
        )
        (gate,) = add_rows(query.table[_CROSS_GATE:], query.inputs.gate, range(1))
        return gate * out if keep is True else gate * out * keep

    def _feed_forward(self, x: Tensor, s: StreamInputs, layers: StreamLayers, parts: int) -> Tensor:
        shift, scale, gate = add_rows(layers.table, s.modulation, _FEED_FORWARD)

        def gain(part: slice = slice(None)) -> Tensor:
            out = layers.ff(modulate(self._norm(x[:, part]), scale, shift, s.levels, part))
            return row_of_tokens(gate, s.levels, part) * out

        if parts == 1:
            return x + gain()
        for part in _parts(x.shape[1], parts):
            x[:, part] += gain(part)  # in place: `x` is a sum of this block's own, nobody else's
        return x


def _modulated_side(side: CrossSide, rows: range) -> Tensor:
    scale, shift = add_rows(side.table, side.inputs.scale_shift, rows)
    return modulate(side.x, scale, shift, side.inputs.levels)


def _parts(tokens: int, parts: int) -> Iterator[slice]:
    """Up to `parts` runs of tokens, the same for the same numbers."""
    length = math.ceil(tokens / parts / _GRID) * _GRID
    return (slice(i, i + length) for i in range(0, tokens, length))
