"""From hidden states to text features: normalise each layer's state, then project all of them.

The states are stacked on a new last axis and flattened (width, layers) before one large linear:
column d * layers + l of its weight belongs to channel d of layer l. Some rows at a time, so that
the flattened stack of a long prompt (385 MB for 1024 tokens of the 12B model) never exists whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import MismatchError

EPS = 1e-6
ROWS = 128  # tokens that are flattened at a time: 48 MB of the 12B model in bf16
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
        (features,) = _project([self.aggregate_embed], [1.0], normed, self.width)
        return features, features


class SplitProjection(nn.Module):
    """2.3, 2.5: one biased projection per modality; `audio` None leaves the audio side out.

    The rescaling for the change of width makes padded rows end up as the bias.
    """

    def __init__(self, width: int, layers: int, video: int, audio: int | None) -> None:
        super().__init__()
        self.width = width
        self.video_aggregate_embed = nn.Linear(width * layers, video)
        self.audio_aggregate_embed = None if audio is None else nn.Linear(width * layers, audio)

    def forward(self, states: Iterable[Tensor], mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Video and audio features (B, T, features) of the hidden states, each (B, T, D)."""
        normed = (token_norm(x, mask) for x in states)
        linears = [self.video_aggregate_embed, self.audio_aggregate_embed]
        present = [linear for linear in linears if linear is not None]
        scales = [math.sqrt(linear.out_features / self.width) for linear in present]
        video, *audio = _project(present, scales, normed, self.width)
        return video, audio[0] if audio else None


def _project(
    linears: Sequence[nn.Linear], scales: Sequence[float], normed: Iterable[Tensor], width: int
) -> list[Tensor]:
    """Features (B, T, out) of the flattened, rescaled stack, one per linear."""
    layers = linears[0].in_features // width
    kept = list(_expect(normed, width, layers))
    parts: list[list[Tensor]] = [[] for _ in linears]
    for rows in range(0, kept[0].shape[1], ROWS):
        stack = torch.stack([x[:, rows : rows + ROWS] for x in kept], dim=-1)  # (B, t, D, L)
        flat = stack.flatten(2).to(linears[0].weight.dtype)  # (B, t, D * L)
        for part, linear, scale in zip(parts, linears, scales, strict=True):
            part.append(linear(flat * scale))
    return [torch.cat(part, dim=1) for part in parts]


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
