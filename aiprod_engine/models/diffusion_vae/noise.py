"""Noise that decides fine texture: the same for a seed, however a clip is cut into tiles."""

from __future__ import annotations

import torch
from torch import Tensor

# ComfyUI decodes with this seed always; the authors' pipelines draw after all sampling noise.
DECODE_SEED = 0


def decode_noise(
    seed: int, frames: range, frame: tuple[int, int, int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal noise (1, C, F, H, W) on the CPU for some `frames` of size (C, H, W).

    Each frame has a generator of its own, whose seed is the frame's entry in a list that `seed`
    draws. Frames can thus be asked for in any order. Drawn in float32, whatever `dtype` keeps it.
    """
    seeds = torch.randint(
        1 << 32, (frames.stop,), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    channels, height, width = frame
    noise = torch.empty(1, channels, len(frames), height, width, dtype=dtype)
    for place, index in enumerate(frames):
        generator = torch.Generator().manual_seed(seeds[index])
        noise[0, :, place] = torch.randn(frame, generator=generator)
    return noise
