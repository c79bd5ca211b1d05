import pytest
import torch
from goldens import golden

from aiprod_engine.errors import SizeError
from aiprod_engine.latents import dfr


@pytest.mark.parametrize("case", golden("conditioning/dfr_layout"))
def test_canvas_and_two_rounds(case):
    def same(name, values):
        case.check(name, torch.tensor(values).float())

    for i, row in enumerate(case.call["cases"]):
        canvas = dfr.canvas(row["num_frames"])
        same(f"canvas.{i}", [canvas.frames, canvas.segment])
        same(f"positions.{i}", canvas.slots)
        keyframes = canvas.slots
        for number in (1, 2):
            keyframes = dfr.doubled(keyframes)
            same(f"seams.{i}.round{number}", keyframes)
            tiles = dfr.round_tiles(keyframes, number)
            same(f"tiles.{i}.round{number}", [table_row(tile) for tile in tiles])
            for j, tile in enumerate(tiles):
                same(f"tile_anchors.{i}.round{number}.{j}", tile.anchors)
                same(f"tile_slots.{i}.round{number}.{j}", tile.slots)
            keyframes = dfr.carried(keyframes, tiles)


def table_row(tile):
    latents = tile.latents
    ends = [latents.start, latents.stop, tile.drop, tile.start, tile.end]
    return [*ends, len(tile.anchors), len(tile.slots)]


@pytest.mark.parametrize("frames", [9, 97, 121, 161, 257])
@pytest.mark.parametrize("number", [1, 2])
def test_stitched_tiles_cover_the_round(frames, number):
    keyframes = tuple(2**number * k for k in dfr.canvas(frames).slots)
    covered = []
    for tile in dfr.round_tiles(keyframes, number):
        assert tile.frames % 8 == 1
        covered += range(tile.latents.start + tile.drop, tile.latents.stop)
    assert covered == list(range(keyframes[-1] // 8 + 1))


@pytest.mark.parametrize("case", golden("conditioning/dfr_audio_window"))
def test_audio_window(case):
    for i, row in enumerate(case.call["cases"]):
        window = dfr.audio_window(
            case.inputs["audio"],
            row["pixel_start"],
            row["tile_frames"],
            row["playback_fps"],
            row["conditioning_fps"],
        )
        case.check(f"window.{i}", window)


def test_slot_seeds_are_the_nearest_latents():
    video = torch.arange(5.0).view(1, 1, 5, 1, 1)
    assert dfr.slot_seeds(video, (0, 11, 12, 13, 20, 32)).flatten().tolist() == [0, 1, 2, 2, 2, 4]


def test_rates_and_lengths():
    assert [dfr.conditioning_fps(f) for f in (24.0, 30.0, 48.0, 96.0)] == [24.0, 30.0, 60.0, 60.0]
    assert [dfr.trimmed_frames(121, r) for r in (0, 1, 2)] == [121, 241, 481]
    with pytest.raises(SizeError):
        dfr.canvas(1)
