"""Building blocks of encoder and decoder.

Clips are (B, C, F, H, W). A convolution never pads time itself: `pad_time` repeats the edge frames
of a whole clip, while streaming hands over windows of three frames. Callers rebind one name step by
step, so that no more than three tensors of full size are alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ResampleConfig, ResStageConfig, Stride

Pointwise = Callable[[Tensor], Tensor]


class Modulation(NamedTuple):
    """Shift and scale (C,) after a norm; conditioned decoders only."""

    shift: Tensor
    scale: Tensor


def pixel_norm(x: Tensor) -> Tensor:
    """Return x / sqrt(mean over channels of x^2 + 1e-8), each position on its own."""
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


def activate(x: Tensor, modulation: Modulation | None = None) -> Tensor:
    """Return silu(pixel_norm(x)), with `modulation` between the two."""
    x = pixel_norm(x)
    if modulation is not None:
        shift, scale = (row.view(-1, 1, 1, 1) for row in modulation)
        x = x * (1 + scale) + shift
    return F.silu(x, inplace=True)  # our own tensor


def pad_time(x: Tensor, causal: bool) -> Tensor:
    """Return the clip with edge frames repeated: the first one twice, or both once."""
    first, last = x[:, :, :1], x[:, :, -1:]
    return torch.cat([first, first, x] if causal else [first, x, last], dim=2)


def pack(x: Tensor, stride: Stride) -> Tensor:
    """Move blocks of `stride` into channels: b c (d p1) (h p2) (w p3) -> b (c p1 p2 p3) d h w."""
    B, C, T, H, W = x.shape
    p1, p2, p3 = stride
    x = x.reshape(B, C, T // p1, p1, H // p2, p2, W // p3, p3)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def unpack(x: Tensor, stride: Stride) -> Tensor:
    """Inverse of `pack`: b (c p1 p2 p3) d h w -> b c (d p1) (h p2) (w p3)."""
    x = x.unflatten(1, (-1, *stride))  # (B, C, p1, p2, p3, D, H, W)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def patchify(x: Tensor, size: int) -> Tensor:
    """b c f (h q) (w r) -> b (c r q) f h w; unlike `pack`, the column offset varies slower."""
    x = x.unflatten(4, (-1, size)).unflatten(3, (-1, size))  # (B, C, F, H, q, W, r)
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unpatchify(x: Tensor, size: int) -> Tensor:
    """Inverse of `patchify`."""
    x = x.unflatten(1, (-1, size, size))  # (B, C, r, q, F, H, W)
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


class Conv(nn.Module):
    """3x3x3 convolution, without padding in time."""

    def __init__(
        self, in_channels: int, out_channels: int, padding: str, stride: Stride = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.padding = padding
        self.border = 1 if padding == "zeros" else 0  # other borders are made by `pad_space`
        self.conv = nn.Conv3d(
            in_channels, out_channels, 3, stride, padding=(0, self.border, self.border)
        )

    def pad_space(self, x: Tensor) -> Tensor:
        """Return x with its mirrored or repeated border; zeros are left to the convolution.

        Norm and SiLU act per position, so this may come before them.
        """
        return x if self.border else F.pad(x, (1, 1, 1, 1, 0, 0), mode=self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Return one frame less on either side than `x`, which comes from `pad_space`."""
        return self.conv(x)

    def window(
        self,
        frames: list[Tensor],
        rows: int | None = None,
        before: Pointwise | None = None,
        after: Pointwise | None = None,
    ) -> Tensor:
        """Return the clip (B, C, n, H, W) that n + 2 successive frames (B, C, 1, H, W) make.

        Computed `rows` rows at a time, None: all at once. `before` and `after` act per position, on
        the frames and on the result. All but the last two frames leave the list, which frees those
        that nobody else holds before the convolution begins.
        """
        height = frames[0].shape[3]
        if rows is None or rows >= height:
            return self._stripe(frames, 0, height, before, after)
        clip: Tensor | None = None
        for top in range(0, height, rows):
            stripe = self._stripe(frames, top, min(top + rows, height), before, after)
            if clip is None:
                clip = stripe.new_empty(*stripe.shape[:3], height, stripe.shape[4])
            clip[:, :, :, top : top + rows] = stripe
        return clip

    def _stripe(
        self,
        frames: list[Tensor],
        top: int,
        bottom: int,
        before: Pointwise | None,
        after: Pointwise | None,
    ) -> Tensor:
        """Rows `top` to `bottom` of the result; the picture's border is made at its edges only."""
        height = frames[0].shape[3]
        above, below = int(top > 0), int(bottom < height)  # rows of the neighbouring stripes
        x = torch.cat([f[:, :, :, top - above : bottom + below] for f in frames], dim=2)
        if not below:
            del frames[:-2]
        if before is not None:
            x = before(x)
        if above or below:
            mode = "constant" if self.border else self.padding
            x, border = F.pad(x, (1, 1, 1 - above, 1 - below, 0, 0), mode=mode), 0
        else:
            x, border = self.pad_space(x), self.border
        y = self._frame(x, border) if x.shape[2] == 3 else self._frames(x, border)
        del x
        return y if after is None else after(y)

    def _frame(self, x: Tensor, border: int) -> Tensor:
        """One frame from a window of three, as a conv2d.

        Always the same shape, hence the same bits however a clip is cut; and on a CPU several times
        as fast as a conv3d.
        """
        x = x.flatten(1, 2)
        weight = self.conv.weight.flatten(1, 2)  # a view: (out, in, 3, 3, 3) -> (out, 3 in, 3, 3)
        # A kernel copies weights into its own order at every call. Those of an upsampler, which has
        # up to eight times as many outputs as inputs, would be a third of all that a stream holds.
        size = self.conv.in_channels
        if self.conv.out_channels <= size:
            return F.conv2d(x, weight, self.conv.bias, padding=border).unsqueeze(2)
        height, width = (side + 2 * border - 2 for side in x.shape[-2:])
        y = x.new_empty(len(x), self.conv.out_channels, height, width)
        parts = zip(y.split(size, 1), weight.split(size), self.conv.bias.split(size), strict=True)
        for part, rows, bias in parts:
            part.copy_(F.conv2d(x, rows, bias, padding=border))
        return y.unsqueeze(2)

    def _frames(self, x: Tensor, border: int) -> Tensor:
        return F.conv3d(x, self.conv.weight, self.conv.bias, padding=(0, border, border))


class ResnetBlock(nn.Module):
    """x + conv2(silu(norm(conv1(silu(norm(x))))))."""

    def __init__(self, channels: int, padding: str, conditioned: bool = False) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, padding)
        self.conv2 = Conv(channels, channels, padding)
        if conditioned:
            self.scale_shift_table = nn.Parameter(torch.zeros(4, channels))

    def forward(self, x: Tensor, causal: bool, embedding: Tensor | None = None) -> Tensor:
        first, second = self.modulations(embedding)
        h = x
        for conv, modulation in ((self.conv1, first), (self.conv2, second)):
            h = pad_time(h, causal)
            h = conv.pad_space(h)
            h = activate(h, modulation)
            h = conv(h)
        return h.add_(x)  # our own tensor

    def modulations(self, embedding: Tensor | None) -> tuple[Modulation | None, Modulation | None]:
        """Shift and scale before each SiLU, from a time embedding (4, C)."""
        if embedding is None:
            return None, None
        shift1, scale1, shift2, scale2 = self.scale_shift_table + embedding
        return Modulation(shift1, scale1), Modulation(shift2, scale2)


class ResStage(nn.Module):
    """Residual blocks of one width; `time_embedder` feeds them in conditioned decoders."""

    def __init__(
        self, config: ResStageConfig, padding: str, time_embedder: nn.Module | None = None
    ) -> None:
        super().__init__()
        conditioned = time_embedder is not None
        self.res_blocks = nn.ModuleList(
            ResnetBlock(config.channels, padding, conditioned) for _ in range(config.layers)
        )
        if conditioned:
            self.time_embedder = time_embedder


class Downsample(nn.Module):
    """Convolution packed by `stride`, plus group means of the packed input; causal in time."""

    def __init__(self, config: ResampleConfig, padding: str) -> None:
        super().__init__()
        self.stride = config.stride
        parts = self.stride[0] * self.stride[1] * self.stride[2]
        self.group = config.in_channels * parts // config.out_channels
        self.conv = Conv(config.in_channels, config.out_channels // parts, padding)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        if self.stride[0] == 2:
            x = torch.cat((x[:, :, :1], x), dim=2)  # an odd number of frames becomes even
        return self.merge(x, self.conv(self.conv.pad_space(pad_time(x, causal))))

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the packed conv output `y` plus the skip path of its input `x`."""
        skip = pack(x, self.stride).unflatten(1, (-1, self.group)).mean(2)
        return pack(y, self.stride) + skip


class Upsample(nn.Module):
    """Convolution unpacked by `stride`; doubling time drops the very first frame: T -> 2T - 1."""

    def __init__(self, config: ResampleConfig, padding: str) -> None:
        super().__init__()
        self.stride, self.residual = config.stride, config.residual
        self.doubles_time = self.stride[0] == 2
        parts = self.stride[0] * self.stride[1] * self.stride[2]
        self.out_channels = config.out_channels
        self.conv = Conv(config.in_channels, config.out_channels * parts, padding)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        y = self.expand(self.conv(self.conv.pad_space(pad_time(x, causal))), x)
        return y[:, :, 1:] if self.doubles_time else y

    def expand(self, y: Tensor, x: Tensor | None) -> Tensor:
        """Return the unpacked conv output `y`, first frame included; `residual` adds its input."""
        y = unpack(y, self.stride)
        if self.residual:
            skip = unpack(x, self.stride)  # (B, C / n, ...)
            # The whole block of channels repeats: 0 1 2 0 1 2, not 0 0 1 1 2 2.
            y.unflatten(1, (-1, skip.shape[1])).add_(skip.unsqueeze(1))
        return y


def flat_layers(blocks: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Residual blocks and resamplers in order of execution.

    A loop over these holds one activation; a loop over stages would hold each stage's input too.
    """
    for block in blocks:
        if isinstance(block, ResStage):
            yield from block.res_blocks
        else:
            yield block
