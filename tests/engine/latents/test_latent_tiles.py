import pytest
import torch
from goldens import golden

from aiprod_engine.latents.tiles import blend_tiles, grid_tiles, latent_tiles


@pytest.mark.parametrize("case", golden("conditioning/latent_tiles"))
def test_intervals_and_windows(case):
    for i, row in enumerate(case.call["cases"]):
        tiles = latent_tiles(row["size"], row["tiles"], row["overlap"])
        table = torch.tensor([[t.start, t.end, t.left, t.right] for t in tiles])
        case.check(f"intervals.{i}", table.float())
        for j, tile in enumerate(tiles):
            case.check(f"window.{i}.{j}", tile.window())


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("overlap", [0, 1, 6])
def test_two_tiles_cover_any_axis_with_sum_one(size, overlap):
    total = torch.zeros(size)
    for tile in latent_tiles(size, 2, overlap):
        total[tile.start : tile.end] += tile.window()
    torch.testing.assert_close(total, torch.ones(size))


def test_unchanged_tiles_blend_to_the_whole():
    latent = torch.randn(1, 3, 13, 10, 9)
    tiles = grid_tiles(latent.shape[2:], overlaps=(4, 3, 2))
    assert len(tiles) == 8
    blended = blend_tiles(tiles, (t.crop(latent) for t in tiles), latent.shape)
    torch.testing.assert_close(blended, latent)


def test_reference_is_cut_like_its_target():
    tile = grid_tiles((9, 12, 16), overlaps=(2, 4, 4))[-1]
    target, reference = torch.zeros(1, 1, 9, 12, 16), torch.zeros(1, 1, 9, 6, 8)
    frames, rows, columns = tile.crop(target).shape[2:]
    assert tile.crop(reference, downscale=2).shape[2:] == (frames, rows // 2, columns // 2)
