import pytest
import torch
from goldens import golden

from aiprod_engine.latents.positions import (
    VideoGrid,
    audio_positions,
    in_seconds,
    pixel_bounds,
    scale_factors,
    video_positions,
)


@pytest.mark.parametrize("case", golden("conditioning/pixel_coords"))
def test_video_positions_match_reference(case):
    for i, g in enumerate(case.call["grids"]):
        size = g["frames"], g["height"], g["width"]
        case.check(f"positions.{i}.causal", video_positions(*size, g["fps"]))
        plain = in_seconds(pixel_bounds(*size, causal=False), g["fps"])
        case.check(f"positions.{i}.plain", plain[None])
    alt = case.call["alt"]
    other = video_positions(*alt["grid"], alt["fps"], tuple(alt["ratios"]))
    case.check("positions.ratio_4_16_16", other)


@pytest.mark.parametrize("case", golden("conditioning/audio_coords"))
def test_audio_positions_match_reference(case):
    for i, row in enumerate(case.call["cases"]):
        positions = audio_positions(row["frames"], row["shift"], row["causal"])
        case.check(f"positions.{i}", positions)


@pytest.mark.parametrize("case", golden("transformer/positions"))
def test_positions_the_transformer_was_recorded_with(case):
    call = case.call
    case.check("video", video_positions(*call["video_latent_grid"], call["fps"]))
    case.check("audio", audio_positions(call["audio_latent_frames"]))
    shifted = audio_positions(call["audio_latent_frames"], call["audio_shift"])
    case.check("audio_shifted", shifted)


@pytest.mark.parametrize("case", golden("conditioning/scale_factors"))
def test_factors_from_block_list(case):
    vae = case.config["vae"]
    rows = [
        scale_factors({"encoder_blocks": vae["variants"][name], "patch_size": vae["patch_size"]})
        for name in case.call["rows"]
    ]
    case.check("time_height_width", torch.tensor(rows).float())


def test_factors_without_encoder_blocks():
    decoder = [["compress_all", {"multiplier": 2}], ["compress_time", {}]]
    assert scale_factors({"decoder_blocks": decoder}) == (4, 8, 8)
    assert scale_factors({"decoder_blocks": decoder, "patch_size": 2}) == (4, 4, 4)
    assert scale_factors({}) == (8, 32, 32)


def test_batch_repeats_one_sample():
    one, two = video_positions(3, 2, 4, 25.0), video_positions(3, 2, 4, 25.0, batch=2)
    assert two.dtype == torch.float32
    assert torch.equal(two, one.repeat(2, 1, 1, 1))
    assert audio_positions(4, batch=3).shape == (3, 1, 4, 2)


@pytest.mark.parametrize("case", golden("conditioning/shape_tables"))
def test_grid_of_a_size_in_pixels(case):
    for row in case.outputs["video_audio"].tolist():
        frames, height, width, fps, *latent = row[:7]
        grid = VideoGrid.of_pixels(int(frames), int(height), int(width), fps)
        assert [grid.frames, grid.height, grid.width] == latent
        assert grid.frames * grid.height * grid.width == row[7]
        assert [grid.pixel_frames, grid.height * 32, grid.width * 32] == row[9:]


def test_grid_of_a_latent():
    grid = VideoGrid.of(torch.zeros(1, 8, 4, 2, 3), fps=25.0)
    assert (grid.frames, grid.height, grid.width, grid.pixel_frames) == (4, 2, 3, 25)
    assert grid.zeros(2, 8, dtype=torch.bfloat16).shape == (2, 8, 4, 2, 3)
