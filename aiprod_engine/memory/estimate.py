"""Device bytes that a phase needs beside its weights, from configuration and sizes alone.

Every law counts the tensors that are alive together in the code of the network, at the point where
they are most; the tests compare them with counted storages. Allocators and kernels add a share on
top, which the plan keeps free. Functions take the configuration records of the networks and the
bytes of an element, 2 for bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

_STATE_COPIES = 8  # float32 copies of a latent that guidance and a multi-step sampler keep
_GRID = 256  # tokens: parts of a feed-forward are multiples
# What the fit of a live preview decodes in one call.
PROBE_CELLS = 2  # rows and columns: the least that decoders with reflection (2.0) take
PROBES_AT_ONCE = 32  # some ten MiB in every published decoder


@dataclass(frozen=True)
class StreamSize:
    """One stream in a forward: its tokens, rows of context, and whether they attend by strengths.

    `levels` are the noise levels that the caller tells apart, None: a timestep for every token.
    """

    tokens: int
    context: int = 1024
    is_masked: bool = False
    levels: int | None = None

    @property
    def rows(self) -> int:
        """Rows of modulation."""
        return self.tokens if self.levels is None else self.levels


def transformer(
    config: Any,
    video: StreamSize | None,
    audio: StreamSize | None,
    itemsize: int,
    batch: int = 1,
    parts: int = 1,
) -> int:
    """One forward of `batch` samples (guidance passes in one call count too) and the sampler.

    Feed-forwards take the tokens in `parts` parts.
    """
    sides = [(config.video, video), (config.audio, audio)]
    present = [(stream, size) for stream, size in sides if size is not None]
    crosses = len(present) == 2 and all(size.tokens for _, size in present)
    held = sum(_held(config, stream, size, crosses) for stream, size in present)
    extra = max(_busiest(stream, size, parts) for stream, size in present)
    gained = sum(size.tokens * stream.dim for stream, size in present)  # sums after attention
    bias = sum(size.tokens**2 for _, size in present if size.is_masked)
    in_block = (held + gained + extra + bias) * itemsize
    # Strengths become a bias in float32, before the other stream is looked at: logarithm, choice
    # and result are alive together, then logarithm, result and its cast.
    begun = sum(_held(config, stream, size, crosses=False) for stream, size in present)
    entering = begun * itemsize + bias * (9 if itemsize == 4 else 8 + itemsize)
    states = sum(s.tokens * stream.in_channels * 4 * _STATE_COPIES for stream, s in present)
    return batch * max(in_block, entering if bias else 0) + states


def _held(config: Any, stream: Any, size: StreamSize, crosses: bool) -> int:
    """Elements that live through all blocks."""
    per_token = 1 + config.block_rows + 4 * crosses  # embedding and modulation rows
    context = 0 if config.caption_proj_before_connector else size.context * stream.dim
    rotary = size.tokens * (stream.dim + crosses * config.audio.dim)
    return size.rows * per_token * stream.dim + size.tokens * stream.dim + rotary + context


def _busiest(stream: Any, size: StreamSize, parts: int) -> int:
    """Elements of the busiest step of a block beside shift, scale and gate.

    In a feed-forward: of a part the input, 4 and 4 inside. In an attention: its input, queries,
    keys, and what turns them.
    """
    part = size.tokens if parts == 1 else min(size.tokens, size.tokens // parts + _GRID)
    return stream.dim * (3 * size.rows + max(9 * part, 4 * size.tokens))


def text_decoder(config: Any, tokens: int, itemsize: int, prompts: int = 1) -> int:
    """Prompts of `tokens` through Gemma one after the other, all hidden states of all kept."""
    states = config.hidden_states * config.width * prompts
    layer = 3 * config.intermediate + 2.5 * config.width
    masks = len(set(config.layers)) * tokens**2  # bool
    return int(tokens * (states + layer) * itemsize) + masks


def text_writer(config: Any, chat: int, length: int, itemsize: int) -> int:
    """A chat of `chat` tokens read at once, keys and values of `length` tokens, and the table.

    The table of embeddings is the head: it is read as a whole for every token.
    """
    kept = length * sum(2 * kind.kv_heads * kind.head_dim for kind in config.layers)
    reading = chat * (3 * config.intermediate + 5 * config.width)
    masks = len(set(config.layers)) * length**2  # bool
    return (config.vocab_size * config.width + kept + reading) * itemsize + masks


def text_vision(config: Any, itemsize: int) -> int:
    """One picture, which always has the tower's own size."""
    return config.side**2 * (2 * config.intermediate + 4 * config.width) * itemsize


def text_connector(config: Any, tokens: int, rows: int, itemsize: int, prompts: int = 1) -> int:
    """Projection and connectors of `tokens` prompt tokens, filled up to `rows`; states kept."""
    video = config.video.width
    both = video + (0 if config.audio is None else config.audio.width)
    states = config.layers * config.width * tokens * itemsize * prompts
    columns = config.width * video * itemsize  # of one layer, made contiguous
    projecting = columns + tokens * (2 * config.width * itemsize + 3 * both * 4)
    connecting = rows * video * 13 * itemsize + tokens * both * itemsize
    return states + max(projecting, connecting)


def decode_untiled(config: Any, latent: Sequence[int], itemsize: int) -> int:
    """A whole latent (F, H, W) at once: some 24 elements per output pixel in 2.0, 2.3 and 2.5."""
    side = config.decoder
    # At the picture: the last convolution's input and output, and that put in pixel order.
    picture = (side.last_width + 2 * _patch_channels(config, side)) * _picture(config, latent)
    return max(_untiled(side, _stages(side, latent, grows=True)), picture) * itemsize


def encode_untiled(config: Any, pixels: Sequence[int], itemsize: int) -> int:
    """A whole clip (F, H, W) at once: some 24 elements per pixel."""
    side, cells = config.encoder, _patches(config, pixels)
    picture = (side.first_width + 2 * _patch_channels(config, side)) * prod(cells)
    return max(_untiled(side, _stages(side, cells, grows=False)), picture) * itemsize


def decode_streamed(
    config: Any, latent: Sequence[int], itemsize: int, frames: int = 1, rows: int | None = None
) -> int:
    """In pieces of `frames` frames and `rows` rows: some 400 (2.0) or 490 (2.3, 2.5) elements per
    pixel of *one* frame with one frame, 560 or 650 with eight."""
    side, piece = config.decoder, _Piece(frames, rows)
    cells = _picture(config, (1, *latent[1:]))
    window = (frames + 2) * side.last_width * piece.share(latent[1] * side.space_factor)
    pixels = frames * _patch_channels(config, side)
    # The last window and that squared; it and the result; the result in both orders.
    picture = max(2 * window, window + pixels, 2 * pixels) * cells
    first = 2 * config.latent_channels * prod(latent[1:])
    stages = _stages(side, latent, grows=True, pushed=max(1, frames // side.time_factor))
    return int(first + _streamed(stages, piece, picture)) * itemsize


def encode_streamed(
    config: Any, pixels: Sequence[int], itemsize: int, frames: int = 1, rows: int | None = None
) -> int:
    """In pieces of `frames` frames and `rows` rows: some 577 (2.0) or 503 (2.3, 2.5) elements per
    pixel of *one* frame with one frame."""
    side, cells = config.encoder, _patches(config, pixels)
    channels, frame = _patch_channels(config, side), prod(cells[1:])
    window = (frames + 2) * channels
    # Frames and their window; that and the result.
    picture = max(frames * channels + window, window + frames * side.first_width) * frame
    first = 2 * channels * frame
    stages = _stages(side, cells, grows=False, pushed=frames)
    return int(first + _streamed(stages, _Piece(frames, rows), picture)) * itemsize


@dataclass(frozen=True)
class _Piece:
    """What one call of a streamed convolution computes."""

    frames: int
    rows: int | None

    def share(self, height: int) -> float:
        """Rows that a call reads, of a picture of that height."""
        return 1 if self.rows is None else min(1, (self.rows + 2) / height)


@dataclass(frozen=True)
class _Stage:
    """`layers` residual blocks, or one resampler, at the size of its input."""

    layers: int
    channels: int
    size: tuple[int, int, int]
    out: int = 0  # elements that a resampler puts out
    block: int = 1  # frames that a stream brings at once
    made: int = 0  # elements of a frame that an upsampler puts out
    step: int = 1  # frames that it makes of one

    def padded(self, border: int) -> int:
        """Cells with the frames and pixels that a convolution needs around them."""
        frames, height, width = self.size
        return (frames + 2) * (height + 2 * border) * (width + 2 * border)


def _stages(side: Any, size: Sequence[int], grows: bool, pushed: int = 1) -> Iterator[_Stage]:
    """The stages of a decoder (which grows) or encoder in order, from an input of (F, H, W).

    A stream pushes `pushed` frames of the input at once.
    """
    frames, height, width = size
    for block in side.blocks:
        before = (frames, height, width)
        if not hasattr(block, "stride"):
            yield _Stage(block.layers, block.channels, before, block=pushed)
            continue
        time, rows, columns = block.stride
        if grows:
            frames, height, width = frames * time - time + 1, height * rows, width * columns
        else:
            frames, height, width = (frames - 1) // time + 1, height // rows, width // columns
        made = block.out_channels * height * width
        yield _Stage(
            0, block.in_channels, before, made * frames, pushed, made if grows else 0, time
        )
        pushed = pushed * time if grows else -(-pushed // time)


def _untiled(side: Any, stages: Iterator[_Stage]) -> int:
    """Residual block: its input, the padded copy and that squared. Resampler: input, both orders.

    The latter dominates nowhere in released files.
    """
    border = 0 if side.padding == "zeros" else 1
    return max(
        stage.channels * (prod(stage.size) + 2 * stage.padded(border))
        if stage.layers
        else stage.channels * prod(stage.size) + 2 * stage.out
        for stage in stages
    )


def _streamed(stages: Iterator[_Stage], piece: _Piece, picture: float) -> float:
    """Two frames in front of every convolution but the first, and the busiest call.

    That is in a residual block (its block of frames, the window of two more frames, and that
    squared; with fewer rows the whole input and output beside the window), in an upsampler (its
    output in both orders), or `picture` elements at the pixel end.
    """
    kept, busiest, frame = 0, picture, 0
    for stage in stages:
        frame = stage.channels * stage.size[1] * stage.size[2]
        block = min(stage.block, piece.frames)
        share = piece.share(stage.size[1])
        held = block if share == 1 else 3 * block
        made = stage.step * block  # frames; those beyond a piece wait
        kept += (4 * stage.layers or 2) * frame + max(0, made - piece.frames) * stage.made
        window = (held + 2 * (block + 2) * share) * frame
        busiest = max(busiest, window, 2 * made * stage.made)
    return kept + 2 * frame + busiest


def _patches(config: Any, pixels: Sequence[int]) -> tuple[int, int, int]:
    return pixels[0], pixels[1] // config.patch_size, pixels[2] // config.patch_size


def _patch_channels(config: Any, side: Any) -> int:
    return side.image_channels * config.patch_size**2


def _picture(config: Any, latent: Sequence[int]) -> int:
    """Patches of the picture that a latent (F, H, W) decodes to."""
    frames, height, width = latent
    side = config.decoder
    return ((frames - 1) * side.time_factor + 1) * height * width * side.space_factor**2


def upsampler(config: Any, latent: Sequence[int], itemsize: int) -> int:
    """The whole latent (F, H, W): group norms span the clip, so it cannot be cut."""
    cells = prod(latent)
    out, shuffled = 4 * cells, 4 * cells
    if config.temporal_upsample:
        out = shuffled = 2 * cells
    elif config.rational_resampler:
        factor = {0.75: 3, 1.5: 3, 2.0: 2, 4.0: 4}[config.spatial_scale]
        shuffled = factor**2 * cells
        out = int(config.spatial_scale**2 * cells)
    # residual block: input, activation, convolution, norm; or the shuffle and its source
    widest = config.mid_channels * max(4 * out, 2 * shuffled + cells)
    return (widest + config.in_channels * cells) * itemsize


def audio_decoder(config: Any, latents: int, itemsize: int) -> int:
    """Latent frames of sound to a spectrogram; four mel frames each."""
    cells = 4 * latents * config.mel_bins
    widest = max(config.width(0), config.width(min(1, len(config.ch_mult) - 1)))
    return int(3.85 * widest * cells) * itemsize


def audio_encoder(config: Any, mel_frames: int, itemsize: int) -> int:
    """A spectrogram to latents: some six copies of it in the width of the busiest level."""
    levels = range(len(config.ch_mult))
    widest = max(config.width(level) / 4**level for level in levels)
    return int(6 * widest * mel_frames * config.mel_bins) * itemsize


def vocoder(config: Any, mel_frames: int) -> int:
    """Spectrogram to waveform, in float32 always."""
    needed = _generator(config.generator) * mel_frames
    if config.bandwidth is not None:
        per_frame = prod(config.generator.upsample_rates) / config.bandwidth.hop_length
        needed = max(needed, _generator(config.bandwidth.generator) * mel_frames * per_frame)
    return int(needed) * 4


def _generator(config: Any) -> int:
    """Elements per input frame: sum, input and three of a residual block; twice that to avoid
    aliasing, because its activations run at double rate."""
    length, widest = 1, 0
    for stage, rate in enumerate(config.upsample_rates, start=1):
        length *= rate
        widest = max(widest, config.upsample_initial_channel // 2**stage * length)
    return widest * (10 if config.amp else 5)
