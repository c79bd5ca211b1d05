"""The memory law of the diffusion decoder against counted storages, at published widths.

One block a stage: depth repeats a peak, it does not raise it. Rows marked `live` are counted again
here, the others were counted in the same way, some of them in half a minute.
"""

from typing import NamedTuple

import pytest
import torch

from aiprod_engine.memory.estimate_diffusion import diffusion_tiled, diffusion_untiled
from aiprod_engine.models.diffusion_vae import DiffusionDecoder, DiffusionDecoderConfig
from aiprod_engine.weights.presets import preset

WITHIN = 0.15  # of the counted peak


class Row(NamedTuple):
    """Latent (F, h, w), element bytes, counted bytes, and cells of a tile or None."""

    latent: tuple[int, int, int]
    itemsize: int
    counted: int
    tile: tuple[int, int, int] | None = None
    live: bool = False


ROWS = [
    Row((3, 7, 7), 2, 311_070_720, live=True),
    Row((3, 7, 7), 4, 621_009_920, live=True),
    Row((11, 10, 12), 2, 1_862_675_456),
    Row((16, 22, 40), 2, 18_878_526_528),  # 121 frames of 704 x 1280
    Row((16, 12, 20), 2, 1_778_706_784, (40, 40, 40)),
]
SMALL = [  # latent, tile; narrow and on the CPU, with values
    ((2, 3, 4), None),
    ((4, 5, 6), None),
    ((8, 5, 6), (9, 12, 16)),
]


def section(**changes):
    found = preset("vae_diffusion", "2.5")
    found["decoder"] |= {"stage_depths": [1, 1, 1, 1, 1]} | changes
    return found


def predicted(config, latent, itemsize, tile):
    if tile is None:
        return diffusion_untiled(config, latent, itemsize)
    return diffusion_tiled(config, latent, tile, itemsize)


def decoding(decoder, latent, tile):
    """A function that decodes zeros; a tile begins where the clip does, but not in time."""
    config, like = decoder.config, decoder.like
    x = like.new_zeros(1, config.latent_channels, *latent)
    frames, height, width = config.canvas(latent)
    if tile is not None:
        frames, height, width = (a * b for a, b in zip(tile, config.cell, strict=True))

    def run():
        noise = like.new_zeros(1, config.image_channels, frames, height, width)
        if tile is None:
            return decoder(x, noise)
        rows, columns = tile[1:]
        return decoder.finish(decoder.cells(x)[:, : tile[0], :rows, :columns], noise, leads=False)

    return run


def on_meta(config, dtype):
    with torch.device("meta"):
        return DiffusionDecoder(config).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_law_is_within_15_percent_of_the_recorded_peak(row):
    config = DiffusionDecoderConfig.from_metadata(section())
    found = predicted(config, row.latent, row.itemsize, row.tile)
    assert found == pytest.approx(row.counted, rel=WITHIN)


@pytest.mark.parametrize("row", [row for row in ROWS if row.live], ids=str)
def test_recorded_peak_is_what_the_decoder_does_today(row, peak_bytes):
    dtype = {2: torch.bfloat16, 4: torch.float32}[row.itemsize]
    decoder = on_meta(DiffusionDecoderConfig.from_metadata(section()), dtype)
    measured = peak_bytes(decoding(decoder, row.latent, row.tile))
    assert measured == pytest.approx(row.counted, rel=0.02), "record the rows anew"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("latent", "tile"), SMALL)
def test_law_holds_for_small_decoders_that_compute(latent, tile, dtype, peak_bytes):
    small = section(
        in_channels=16,
        stage_channels=[256, 128, 64, 64, 64],
        stage_kernels=[[3, 3, 3], [3, 3, 3], [3, 5, 5], [3, 5, 5], [5, 7, 7]],
        stage5_kernel=[5, 7, 7],
        upsamples=[[[1, 2, 2], 2], [[2, 1, 1], 2], [[2, 2, 2], 1], [[2, 2, 2], 1]],
    )
    decoder = on_meta(DiffusionDecoderConfig.from_metadata(small), dtype)
    state = {k: torch.zeros(v.shape, dtype=dtype) for k, v in decoder.state_dict().items()}
    decoder.load_state_dict(state, assign=True)
    measured = peak_bytes(decoding(decoder.requires_grad_(False), latent, tile))
    found = predicted(decoder.config, latent, dtype.itemsize, tile)
    assert found == pytest.approx(measured, rel=WITHIN)


def test_a_plan_of_a_long_large_clip_fits_a_small_device():
    """4K, 121 frames, in bfloat16: the cells of the whole clip stay, 8.6 GiB of them."""
    config = DiffusionDecoderConfig.from_metadata(preset("vae_diffusion", "2.5"))
    whole = diffusion_untiled(config, (16, 68, 120), 2)
    tiled = diffusion_tiled(config, (16, 68, 120), (40, 40, 40), 2)
    assert whole / 2**30 > 140
    assert 9 < tiled / 2**30 < 12
