"""Tiles of the diffusion decoder: on cells of 2 frames and 8 x 8 pixels, with ghosts at the end."""

from dataclasses import replace

import pytest
import torch

from aiprod_engine.errors import SizeError
from aiprod_engine.tiling import CellGrid, blended_chunks, cell_plan, tile_choices

# 121 frames of 704 x 1280 with the published windows.
GRID = CellGrid((61, 88, 160), 8, (2, 8, 8), (20, 20, 20), (6, 6, 6))
SMALL = CellGrid((13, 11, 14), 4, (2, 3, 5), (3, 4, 2), (3, 4, 3))


def test_frames_and_pixels_of_published_tiles():
    plan = cell_plan(GRID, (40, 88, 60))
    assert [(s.start, s.stop, s.out_start, s.out_stop) for s in plan.time] == [
        (0, 40, 0, 79),
        (20, 60, 39, 119),
        (40, 69, 79, 121),  # ghosts are read, and not written
    ]
    assert [(s.start, s.stop) for s in plan.columns] == [(0, 60), (40, 100), (80, 140), (120, 160)]
    assert (plan.rows[0].out_start, plan.rows[0].out_stop) == (0, 704)
    assert plan.largest == (40, 88, 60)
    assert cell_plan(GRID, GRID.size).largest == (69, 88, 160)


@pytest.mark.parametrize("tile", [(40, 44, 48), (44, 88, 160), (61, 60, 40)])
def test_masks_of_neighbours_sum_to_one(tile):
    plan = cell_plan(GRID, tile)
    for axis in (plan.time, plan.rows, plan.columns):
        total = torch.zeros(axis[-1].out_stop)
        for span in axis:
            assert span.mask.min() > 0
            total[span.target] += span.mask
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def enlarge(cells, leads):
    """A network without context: each cell fills its pixels, the first of a clip one frame."""
    x = cells.repeat_interleave(2, 1).repeat_interleave(3, 2).repeat_interleave(5, 3)
    return x[:, int(leads) :].movedim(-1, 1)


@pytest.mark.parametrize("tile", [(6, 8, 4), (7, 11, 9), (13, 8, 14), SMALL.size])
def test_chunks_give_each_frame_once_in_order(tile):
    cells = torch.randn(2, 13 + 4, 11, 14, 3)
    plan = cell_plan(SMALL, tile)

    def run(time, row, column):
        source = cells[:, time.source, row.source, column.source]
        return enlarge(source, time.start == 0)[:, :, : time.out_stop - time.out_start]

    video = torch.cat(list(blended_chunks(run, plan, torch.float32)), dim=2)
    torch.testing.assert_close(video, enlarge(cells, True)[:, :, :25], rtol=1e-5, atol=1e-5)


def test_a_short_last_tile_grows_leftwards():
    grid = replace(SMALL, size=(13, 8, 14), overlap=(1, 1, 1), minimum=(1, 4, 1))
    assert [(s.start, s.stop) for s in cell_plan(grid, (13, 4, 14)).rows] == [
        (0, 4),
        (3, 7),
        (4, 8),  # and not (6, 8)
    ]


def test_tiles_below_twice_their_overlap_are_refused():
    with pytest.raises(SizeError, match="overlap by 20 cells"):
        cell_plan(GRID, (61, 88, 36))


def test_choices_begin_with_the_whole_clip_and_repeat_more_and_more():
    choices = tile_choices(GRID)
    assert choices[0].tile == GRID.size
    work = []
    for choice in choices:
        for side, length in zip(choice.tile, GRID.size, strict=True):
            assert side == length or (side >= 40 and side % 4 == 0)
        plan = cell_plan(GRID, choice.tile)
        assert (choice.count, choice.reads) == (plan.count, plan.largest)
        cells = [sum(s.stop - s.start for s in axis) for axis in (plan.rows, plan.columns)]
        work.append(cells[0] * cells[1] * (sum(s.stop - s.start for s in plan.time) - GRID.ghosts))
    assert work == sorted(work) == [choice.work for choice in choices]
    assert min(choice.tile for choice in choices) == (40, 40, 40)
    (only,) = tile_choices(replace(GRID, size=(5, 30, 30)))
    assert only.tile == (5, 30, 30)
