"""Exact decode and encode frame by frame: memory does not grow with the length of the clip.

A convolution over a stream keeps the last two frames of its input. Non-causal ones (all of the
decoder) therefore answer one frame late, of their own rate; at the end of the stream the last frame
stands in for its successor. Frames inside are (B, C, 1, H, W).

A suspended generator must not own a frame that it has handed on, or every stage would keep one
alive for the whole depth of the chain. Hence the one-element lists: `yield box.pop()` gives the
only reference away. Closing the outermost generator frees all state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from .blocks import Conv, Downsample, ResnetBlock, Upsample, activate, unpatchify
from .config import ResampleConfig, VideoVAEConfig
from .decoder import DECODE_TIME, VideoDecoder
from .encoder import VideoEncoder

Frames = Iterator[Tensor]
Prepare = Callable[[Tensor], Tensor]


def stream_decode(
    decoder: VideoDecoder, latents: Iterable[Tensor], time: float = DECODE_TIME
) -> Frames:
    """Yield pixel frames (B, 3, H, W) of normalised latent frames (B, C, H', W'), in order.

    Equal to the untiled decode up to rounding; bits depend neither on how the latents arrive nor on
    the length of the clip. Most frames of a short clip come out at the end (`look_ahead`).
    """
    dtype = None

    def admitted() -> Frames:
        nonlocal dtype
        for latent in latents:
            dtype = latent.dtype
            yield decoder.admit(latent.unsqueeze(2))

    causal = decoder.causal
    frames = _convolve(admitted(), decoder.conv_in, causal)
    for layer, embedding in decoder.layers(time):
        if isinstance(layer, Upsample):
            frames = _upsample(frames, layer, causal)
        else:
            frames = _residual(frames, layer, causal, embedding)
    last = decoder.last_modulation(time)
    frames = _each(frames, lambda x: activate(x, last))
    for y in _convolve(frames, decoder.conv_out, causal):
        yield unpatchify(y, decoder.config.patch_size).squeeze(2).to(dtype)


def stream_encode(encoder: VideoEncoder, frames: Iterable[Tensor]) -> Frames:
    """Yield normalised latent frames (B, C, H/32, W/32) of pixel frames (B, 3, H, W) in [-1, 1].

    Latent k appears with pixel frame 8k; frames after the last 8k are dropped.
    """
    dtype = None

    def admitted() -> Frames:
        nonlocal dtype
        for frame in frames:
            dtype = frame.dtype
            yield encoder.admit(frame.unsqueeze(2))

    stream = _convolve(admitted(), encoder.conv_in, causal=True)
    for layer in encoder.layers():
        if isinstance(layer, Downsample):
            stream = _downsample(stream, layer)
        else:
            stream = _residual(stream, layer, causal=True)
    for y in _convolve(_each(stream, activate), encoder.conv_out, causal=True):
        yield encoder.finish(y).squeeze(2).to(dtype)


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


def _convolve(source: Frames, conv: Conv, causal: bool, prepare: Prepare | None = None) -> Frames:
    """`prepare` is applied to each window of three frames, not to the frames that are kept."""
    before = centre = None
    for x in source:
        box = [x]
        del x
        if centre is None:  # the first frame also stands for what came before it
            before = centre = box[0]
            if not causal:
                box.clear()
                continue
        out = [conv.window(before, centre, box[0], prepare)]
        before, centre = centre, box.pop()
        yield out.pop()
    if centre is not None and not causal:
        out = [conv.window(before, centre, centre, prepare)]
        before = centre = None
        yield out.pop()


def _each(source: Frames, function: Prepare) -> Frames:
    for x in source:
        box = [function(x)]
        del x
        yield box.pop()


def _remember(source: Frames, memory: deque[Tensor]) -> Frames:
    for x in source:
        memory.append(x)
        del x
        yield memory[-1]


def _residual(
    source: Frames, block: ResnetBlock, causal: bool, embedding: Tensor | None = None
) -> Frames:
    first, second = block.modulations(embedding)
    skip: deque[Tensor] = deque()
    raw = _remember(source, skip)
    if causal:
        h = _convolve(_each(raw, lambda x: activate(x, first)), block.conv1, causal)
    else:
        # The skip path waits for two frames, the same raw ones that conv1 can keep as its state:
        # a fifth less memory for activating each frame three times, inside the window.
        h = _convolve(raw, block.conv1, causal, lambda x: activate(x, first))
    h = _each(h, lambda x: activate(x, second))
    for y in _convolve(h, block.conv2, causal):
        out = [y.add_(skip.popleft())]  # y is the convolution's own output
        del y
        yield out.pop()


def _upsample(source: Frames, block: Upsample, causal: bool) -> Frames:
    skip: deque[Tensor] = deque()
    at_start = True
    stream = _remember(source, skip) if block.residual else source
    for y in _convolve(stream, block.conv, causal):
        y = block.expand(y, skip.popleft() if block.residual else None)
        # Copies: a view would keep its neighbour alive.
        out = [frame.clone() for frame in y.split(1, dim=2)]
        del y
        if at_start and block.doubles_time:
            out.pop(0)
        at_start = False
        while out:
            yield out.pop(0)


def _downsample(source: Frames, block: Downsample) -> Frames:
    """A group that the end of the stream leaves incomplete is dropped: the cut to 8k + 1."""
    skip: deque[Tensor] = deque()
    group: list[Tensor] = []
    stream = _doubled_start(source) if block.stride[0] == 2 else source
    for y in _convolve(_remember(stream, skip), block.conv, causal=True):
        group.append(y)
        del y
        if len(group) < block.stride[0]:
            continue
        out = [block.merge(torch.cat(tuple(skip), dim=2), torch.cat(group, dim=2))]
        skip.clear()
        group.clear()
        yield out.pop()


def _doubled_start(source: Frames) -> Frames:
    copies = 2
    for x in source:  # not `enumerate`, which holds on to its last item
        box = [x] * copies
        copies = 1
        del x
        while box:
            yield box.pop()
