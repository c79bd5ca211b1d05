"""Pictures of a clip while it is sampled, through a linear map from latents to colours.

The map is fitted from the user's own video VAE, so it is right for every release without shipped
numbers.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import MismatchError
from .latents.positions import VideoGrid
from .media.pixels import to_bytes
from .memory.estimate import PROBE_CELLS, PROBES_AT_ONCE
from .models.video_vae import VideoDecoder
from .sampling.loops import StepInfo

_log = logging.getLogger(__name__)

FRAMES = 4
LARGEST_SHARE = 0.03  # of the time that the steps take


@dataclass(frozen=True)
class LatentRGB:
    """Linear map from normalised latents to colours: `weight` (3, C), `bias` (3,), float32, CPU."""

    weight: Tensor
    bias: Tensor

    def __call__(self, cells: Tensor) -> Tensor:
        """Colours (..., 3) of latent cells (..., C), float32, about [-1, 1]."""
        known, found = self.weight.shape[1], cells.shape[-1]
        if found != known:
            raise MismatchError(
                f"the preview was fitted to a video VAE with {known} latent channels, this clip "
                f"has {found}; use the video VAE of the same checkpoint"
            )
        return F.linear(cells.float(), self.weight.to(cells.device), self.bias.to(cells.device))


@torch.no_grad()
def fit_latent_to_rgb(
    decoder: VideoDecoder, on_batch: Callable[[], None] | None = None
) -> LatentRGB:
    """The map that is exact at the mean latent and one deviation from it along each channel.

    Decodes C + 1 uniform latents of one frame; their mean colours are as many equations as the map
    has unknowns, so that the least squares solution is the difference quotients. `on_batch` runs
    before every batch of decodes and may raise to cancel.
    """
    channels = decoder.config.latent_channels
    probes = torch.cat((torch.zeros(1, channels), torch.eye(channels)))  # (C + 1, C)
    colours = []
    for batch in probes.split(PROBES_AT_ONCE):
        if on_batch is not None:
            on_batch()
        colours.append(_mean_colours(decoder, batch))
    mean, *stepped = torch.cat(colours)
    return LatentRGB(torch.stack(stepped, dim=1) - mean[:, None], mean)


def _mean_colours(decoder: VideoDecoder, probes: Tensor) -> Tensor:
    """Mean colours (N, 3) of decoded uniform latents (N, C)."""
    cells = probes.to(decoder.like.device)[:, :, None, None, None]
    pixels = decoder(cells.expand(-1, -1, 1, PROBE_CELLS, PROBE_CELLS))  # (N, 3, 1, H, W)
    return pixels.float().mean(dim=(2, 3, 4)).cpu()


def preview_frames(rgb: LatentRGB, tokens: Tensor, grid: VideoGrid, count: int = FRAMES) -> Tensor:
    """Up to `count` frames (n, H, W, 3) uint8 on the CPU, spread over the clip, a pixel per cell.

    `tokens` (B, N, C) of which the first sample is shown; what conditioning appended to the grid's
    tokens is not.
    """
    cells = tokens[0, : grid.frames * grid.height * grid.width]
    clip = cells.unflatten(0, (grid.frames, grid.height, grid.width))  # (F, H, W, C)
    count = min(count, grid.frames)
    # the middle frames of `count` equal parts
    chosen = [(2 * part + 1) * grid.frames // (2 * count) for part in range(count)]
    colours = torch.stack([rgb(clip[frame]) for frame in chosen])
    return to_bytes((colours + 1) / 2).cpu()


def contact_sheet(frames: Tensor, side: int) -> Tensor:
    """Frames (n, H, W, 3) uint8, enlarged and laid out by rows: one picture (H', W', 3) uint8.

    Its longer side is `side` or a little less; places without a frame are black.
    """
    count, height, width, _ = frames.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    scale = min(side / (columns * width), side / (rows * height))
    size = (max(int(height * scale), 1), max(int(width * scale), 1))
    large = F.interpolate(frames.movedim(-1, 1).float(), size, mode="bilinear")  # (n, 3, h, w)
    sheet = large.new_zeros(rows * columns, *large.shape[1:])
    sheet[:count] = large
    sheet = sheet.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2)  # (rows, h, columns, w, 3)
    return sheet.flatten(2, 3).flatten(0, 1).round().to(torch.uint8).contiguous()


class LivePreview:
    """Called with every step, returns a picture (H, W, 3) uint8 or None; never raises.

    Shows at most every second step, and fewer where pictures would take more than a small share of
    the time. After an error, which is logged, it stays silent.
    """

    def __init__(
        self,
        rgb: LatentRGB,
        grid: VideoGrid,
        side: int = 512,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._rgb, self._grid, self._side, self._clock = rgb, grid, side, clock
        self._ended, self._cost = clock(), 0.0  # of the last picture
        self._has_failed = False

    def __call__(self, step: StepInfo) -> Tensor | None:
        """The picture of a finished step, where it is time for one."""
        tokens, began = step.denoised.video, self._clock()
        is_affordable = self._cost <= LARGEST_SHARE * (began - self._ended)
        if tokens is None or step.index % 2 or self._has_failed or not is_affordable:
            return None
        try:
            return contact_sheet(preview_frames(self._rgb, tokens, self._grid), self._side)
        except Exception:  # a picture is never worth a run
            self._has_failed = True
            _log.warning("the live preview failed; sampling goes on without it", exc_info=True)
            return None
        finally:
            self._ended = self._clock()
            self._cost = self._ended - began
