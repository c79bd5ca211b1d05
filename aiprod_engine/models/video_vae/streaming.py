"""Exact decode and encode piece by piece: memory does not grow with the length of the clip.

A convolution over a stream keeps the last two frames of its input. Non-causal ones (all of the
decoder) therefore answer one frame late, of their own rate; at the end of the stream the last frame
stands in for its successor.

What runs through the chain are blocks: lists of successive frames (B, C, 1, H, W), each with a
storage of its own, for a view would keep its neighbours alive. Whoever receives a block empties it,
or every suspended stage would keep one alive for the whole depth of the chain. Closing the
outermost generator frees all state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import Conv, Downsample, Pointwise, ResnetBlock, Upsample, activate, unpatchify
from .config import ResampleConfig, VideoVAEConfig
from .decoder import DECODE_TIME, VideoDecoder
from .encoder import VideoEncoder

Frames = Iterator[Tensor]
Block = list[Tensor]
Blocks = Iterator[Block]


@dataclass(frozen=True)
class Piece:
    """What one call of a convolution computes: up to `frames` frames, `rows` rows (None: all).

    Both are counted at the convolution's own level. The result is the same up to rounding. With
    one frame its bits depend neither on how the frames arrive nor on the length of the clip; more
    frames save calls and cost memory, fewer rows the other way round.
    """

    frames: int = 1
    rows: int | None = None

    @property
    def name(self) -> str:
        """For people."""
        name = "frame by frame" if self.frames == 1 else f"{self.frames} frames at a time"
        return name if self.rows is None else f"{name}, {self.rows} rows at a time"


FRAME = Piece()
STRIPES = Piece(rows=32)  # fewer hardly save any more: what streams keep is not cut


def pieces(device: torch.device | str, rows: int) -> tuple[Piece, ...]:
    """Pieces to try on a device, the fastest first, each smaller, for levels of up to `rows` rows.

    Blocks of frames are for accelerators, which they spare most of the calls; with eight frames
    every convolution of a decoder runs once per latent. A CPU is fastest frame by frame.
    """
    counts = (1,) if torch.device(device).type == "cpu" else (8, 4, 2, 1)
    streamed = tuple(map(Piece, counts))
    return (*streamed, STRIPES) if rows > STRIPES.rows else streamed


def stream_decode(
    decoder: VideoDecoder,
    latents: Iterable[Tensor],
    piece: Piece = FRAME,
    time: float = DECODE_TIME,
) -> Frames:
    """Yield pixel frames (B, 3, H, W) of normalised latent frames (B, C, H', W'), in order.

    Equal to the untiled decode up to rounding. Most frames of a short clip come out at the end
    (`look_ahead`).
    """
    dtype = None

    def admitted() -> Frames:
        nonlocal dtype
        for latent in latents:
            dtype = latent.dtype
            yield decoder.admit(latent.unsqueeze(2))

    causal = decoder.causal
    # Fewer frames than `piece` allows: a latent becomes `time_factor` of them by and by.
    pushed = max(1, piece.frames // decoder.config.decoder.time_factor)
    blocks = _grouped(admitted(), pushed)
    blocks = _split(_convolve(blocks, decoder.conv_in, piece, causal))
    for layer, embedding in decoder.layers(time):
        if isinstance(layer, Upsample):
            blocks = _upsample(blocks, layer, piece, causal)
        else:
            blocks = _residual(blocks, layer, piece, causal, embedding)
    last = decoder.last_modulation(time)
    clips = _convolve(blocks, decoder.conv_out, piece, causal, lambda x: activate(x, last))
    for clip in clips:
        frames = list(unpatchify(clip, decoder.config.patch_size).to(dtype).unbind(2))
        del clip
        while frames:
            yield frames.pop(0)


def stream_encode(encoder: VideoEncoder, frames: Iterable[Tensor], piece: Piece = FRAME) -> Frames:
    """Yield normalised latent frames (B, C, H/32, W/32) of pixel frames (B, 3, H, W) in [-1, 1].

    With pieces of one frame latent k appears with pixel frame 8k; frames after the last 8k are
    dropped.
    """
    dtype = None

    def admitted() -> Frames:
        nonlocal dtype
        for frame in frames:
            dtype = frame.dtype
            yield encoder.admit(frame.unsqueeze(2))

    blocks = _grouped(admitted(), piece.frames)
    blocks = _split(_convolve(blocks, encoder.conv_in, piece, causal=True))
    for layer in encoder.layers():
        if isinstance(layer, Downsample):
            blocks = _downsample(blocks, layer, piece)
        else:
            blocks = _residual(blocks, layer, piece, causal=True)
    clips = _convolve(blocks, encoder.conv_out, piece, causal=True, before=activate)
    for clip in clips:
        yield from encoder.finish(clip).to(dtype).unbind(2)


def look_ahead(config: VideoVAEConfig) -> int:
    """Pixel frames that a decoded frame can depend on to either side: 173 (2.0), 108 (2.3, 2.5).

    Frames 0 .. 8t - look_ahead are out once latent t was pushed.
    """
    side = config.decoder
    step = side.time_factor  # pixel frames per frame of the current level
    frames = step  # conv_in
    for block in side.blocks:
        if isinstance(block, ResampleConfig):
            frames += step
            step //= block.stride[0]
        else:
            frames += 2 * block.layers * step
    return frames + step  # conv_out


def resume_point(config: VideoVAEConfig, emitted: int) -> tuple[int, int]:
    """Latent to begin again at, and frames to discard, to go on after `emitted` frames.

    What follows equals the uninterrupted stream bit for bit.
    """
    # A causal conv looks two frames back instead of one back and one ahead.
    reach = look_ahead(config) * (2 if config.causal_decoder else 1)
    factor = config.decoder.time_factor
    latent = max(0, (emitted - reach) // factor)
    return latent, emitted - factor * latent


def _convolve(
    source: Blocks,
    conv: Conv,
    piece: Piece,
    causal: bool,
    before: Pointwise | None = None,
    after: Pointwise | None = None,
) -> Frames:
    """Yield what the convolution makes of each block, a clip (B, C, n, H, W).

    `before` is applied to each window of frames, not to the frames that are kept.
    """
    window: Block = []  # two frames that were used, and those that were not
    for block in source:
        if not window:  # the first frame also stands for what came before it
            window += block[:1] * (2 if causal else 1)
        window += block
        block.clear()
        if len(window) > 2:
            yield conv.window(window, piece.rows, before, after)
    if window and not causal:
        window.append(window[-1])
        last = [conv.window(window, piece.rows, before, after)]
        window.clear()
        yield last.pop()


def _residual(
    source: Blocks, block: ResnetBlock, piece: Piece, causal: bool, embedding: Tensor | None = None
) -> Blocks:
    first, second = block.modulations(embedding)
    skip: Block = []
    # The skip path waits for two frames, the same raw ones that conv1 keeps: a fifth less memory
    # than with activated ones, for activating each frame three times, inside the windows.
    h = _convolve(
        _remember(source, skip),
        block.conv1,
        piece,
        causal,
        before=lambda x: activate(x, first),
        after=lambda x: activate(x, second),
    )
    for y in _convolve(_split(h), block.conv2, piece, causal):
        frames = _own_frames(y.add_(_taken(skip, y.shape[2])))  # in place: the conv's own output
        del y
        yield frames


def _upsample(source: Blocks, block: Upsample, piece: Piece, causal: bool) -> Blocks:
    skip: Block = []
    drops_first = block.doubles_time
    stream = _remember(source, skip) if block.residual else source
    for y in _convolve(stream, block.conv, piece, causal):
        y = block.expand(y, _taken(skip, y.shape[2]) if block.residual else None)
        frames = _own_frames(y)
        del y
        if drops_first:
            del frames[0]
            drops_first = False
        while frames:
            part = frames[: piece.frames]
            del frames[: piece.frames]
            yield part


def _downsample(source: Blocks, block: Downsample, piece: Piece) -> Blocks:
    """A group that the end of the stream leaves incomplete is dropped: the cut to 8k + 1."""
    skip: Block = []
    group: Block = []
    step = block.stride[0]
    stream = _doubled_start(source) if step == 2 else source
    for y in _convolve(_remember(stream, skip), block.conv, piece, causal=True):
        group += _own_frames(y)
        del y
        groups = range(len(group) // step)
        yield [block.merge(_taken(skip, step), _taken(group, step)) for _ in groups]


def _doubled_start(source: Blocks) -> Blocks:
    is_first = True
    for block in source:
        if is_first:
            yield block[:1]
            is_first = False
        yield block


def _grouped(frames: Frames, count: int) -> Blocks:
    block: Block = []
    for frame in frames:
        block.append(frame)
        del frame
        if len(block) == count:
            yield block
    if block:
        yield block


def _remember(source: Blocks, memory: Block) -> Blocks:
    for block in source:
        memory += block
        yield block


def _taken(frames: Block, count: int) -> Tensor:
    """The first `count` frames as one clip; they leave the list."""
    if count == 1:
        return frames.pop(0)
    clip = torch.cat(frames[:count], dim=2)
    del frames[:count]
    return clip


def _split(clips: Frames) -> Blocks:
    for clip in clips:
        block = _own_frames(clip)
        del clip
        yield block


def _own_frames(clip: Tensor) -> Block:
    return [clip] if clip.shape[2] == 1 else [frame.clone() for frame in clip.split(1, dim=2)]
