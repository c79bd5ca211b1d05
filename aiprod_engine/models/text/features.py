"""From hidden states to text features: normalise each layer's state, then project all of them.

The reference stacks the states on a new last axis and flattens (width, layers) before one large
linear. That product is a sum over layers, so each state is folded in as soon as it arrives and the
stack, 385 MB for 1024 tokens of the 12B model, never exists. The projection must therefore be a
plain `nn.Linear`: column d * layers + l of its weight belongs to channel d of layer l.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import MismatchError

EPS = 1e-6
RANGE = 8.0  # 2.0: a normalised state spans 8 between its smallest and its largest value


def statistics_norm(x: Tensor, mask: Tensor) -> Tensor:
    """2.0: `x` (B, T, D) minus its mean, over its range, times 8; padded rows are 0.

    Mean and range are taken per sample over all valid rows and channels; `mask` (B, T), 1 = valid.
    """
    padding = ~mask.bool()[..., None]  # (B, T, 1)
    values = x.float()
    count = mask.sum(1) * x.shape[-1] + EPS  # (B,)
    mean = (values.masked_fill(padding, 0).sum((1, 2)) / count)[:, None, None]
    low = values.masked_fill(padding, math.inf).amin((1, 2), keepdim=True)
    high = values.masked_fill(padding, -math.inf).amax((1, 2), keepdim=True)
    scaled = RANGE * (values - mean) / (high - low + EPS)
    return scaled.masked_fill(padding, 0).to(x.dtype)


def token_norm(x: Tensor, mask: Tensor) -> Tensor:
    """2.3, 2.5: RMS norm of each row of `x` (B, T, D) without a weight; padded rows are 0."""
    scaled = F.rms_norm(x.float(), x.shape[-1:], eps=EPS)
    return scaled.masked_fill(~mask.bool()[..., None], 0).to(x.dtype)


class SharedProjection(nn.Module):
    """2.0: one projection without bias; both modalities receive the same features."""

    def __init__(self, width: int, layers: int, features: int) -> None:
        super().__init__()
        self.width = width
        self.aggregate_embed = nn.Linear(width * layers, features, bias=False)

    def forward(self, states: Iterable[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Video and audio features (B, T, features) of the hidden states, each (B, T, D)."""
        normed = (statistics_norm(x, mask) for x in states)
        (total,) = _fold([self.aggregate_embed], normed, self.width)
        features = total.to(self.aggregate_embed.weight.dtype)
        return features, features


class SplitProjection(nn.Module):
    """2.3, 2.5: one biased projection per modality; `audio` None leaves the audio side out."""

    def __init__(self, width: int, layers: int, video: int, audio: int | None) -> None:
        super().__init__()
        self.width = width
        self.video_aggregate_embed = nn.Linear(width * layers, video)
        self.audio_aggregate_embed = None if audio is None else nn.Linear(width * layers, audio)

    def forward(self, states: Iterable[Tensor], mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Video and audio features (B, T, features) of the hidden states, each (B, T, D)."""
        normed = (token_norm(x, mask) for x in states)
        if self.audio_aggregate_embed is None:
            (video,) = _fold([self.video_aggregate_embed], normed, self.width)
            return self._finish(video, self.video_aggregate_embed), None
        linears = [self.video_aggregate_embed, self.audio_aggregate_embed]
        video, audio = _fold(linears, normed, self.width)
        return self._finish(video, linears[0]), self._finish(audio, linears[1])

    def _finish(self, total: Tensor, linear: nn.Linear) -> Tensor:
        """Rescale for the change of width and add the bias; padded rows end up as the bias."""
        scale = math.sqrt(linear.out_features / self.width)
        return (total * scale + linear.bias.float()).to(linear.weight.dtype)


def _fold(linears: Sequence[nn.Linear], normed: Iterable[Tensor], width: int) -> list[Tensor]:
    """Sum over layers of the normalised state times that layer's columns, one per linear.

    The sums are float32: a bf16 accumulator would round once per layer.
    """
    layers = linears[0].in_features // width
    weights = [linear.weight.unflatten(1, (width, layers)) for linear in linears]  # (out, D, L)
    totals = [0.0] * len(linears)
    for layer, x in enumerate(_expect(normed, width, layers)):
        x = x.to(weights[0].dtype)
        for i, weight in enumerate(weights):
            totals[i] = totals[i] + F.linear(x, weight[..., layer]).float()  # (B, T, out)
    return totals


def _expect(states: Iterable[Tensor], width: int, layers: int) -> Iterator[Tensor]:
    """Pass the states on; raise unless there are `layers` of them, each `width` wide."""
    rule = f"the text projection takes {layers} hidden states of width {width}"
    remedy = "use the text encoder that belongs to it"
    count = 0
    for count, x in enumerate(states, start=1):
        if count > layers or x.shape[-1] != width:
            raise MismatchError(f"{rule}, found number {count} of width {x.shape[-1]}; {remedy}")
        yield x
    if count < layers:
        raise MismatchError(f"{rule}, found only {count}; {remedy}")
