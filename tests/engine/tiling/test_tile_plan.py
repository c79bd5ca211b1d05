"""Tile plans and masks against ltx-core 1.0.0; properties of all plans."""

import pytest
import torch
from goldens import golden
from hypothesis import given, settings
from hypothesis import strategies as st

from aiprod_engine.errors import SizeError
from aiprod_engine.tiling import TileSizes, decode_plan, encode_plan
from aiprod_engine.tiling.blend import weighted
from aiprod_engine.tiling.plan import cut_mask, ramp_mask


@pytest.mark.parametrize("case", golden("video_vae/blend_masks"))
def test_masks(case):
    for call in case.call["trapezoid"]:
        mask = ramp_mask(
            call["length"], call["ramp_left"], call["ramp_right"], call["left_starts_from_0"]
        )
        case.check(call["out"], mask)
    for call in case.call["rectangle"]:
        case.check(call["out"], cut_mask(call["length"], call["left"], call["right"]))


def sizes_of(call):
    spatial, temporal = call["spatial"] or (None, 64), call["temporal"] or (None, 24)
    return TileSizes(*spatial, *temporal)


def check_plan(case, index, plan, full):
    """`full` are the output lengths, which the fixture writes as -1 for an axis left whole."""
    rows = []
    for t in plan.time:
        for h in plan.rows:
            for w in plan.columns:
                spans = (t, h, w)
                rows.append(
                    [
                        *(s.start for s in spans),
                        *(s.stop for s in spans),
                        *(s.out_start for s in spans),
                        *(s.out_stop for s in spans),
                    ]
                )
    expected = case.outputs[f"plan{index}_tiles"]
    whole = torch.tensor([0, 0, 0, 0, 0, 0, *full, *full])
    expected = torch.where(expected == -1, whole, expected)
    assert expected.tolist() == rows
    for axis, spans in (("t", plan.time), ("h", plan.rows), ("w", plan.columns)):
        for j, span in enumerate(spans):
            name = f"plan{index}_mask_{axis}{j}"
            if name in case.outputs:
                case.check(name, span.mask)
            else:
                assert span.mask.eq(1).all()


@pytest.mark.parametrize("case", golden("video_vae/tile_plan_decode"))
def test_decode_plans(case):
    for index, call in enumerate(case.call["plans"]):
        shape = (call["frames"] // 8 + 1, call["height"] // 32, call["width"] // 32)
        plan = decode_plan(shape, sizes_of(call))
        assert plan.count == call["n_tiles"]
        assert len(plan.time) == call["n_temporal_groups"]
        full = (call["frames"], call["height"], call["width"])
        check_plan(case, index, plan, full)
        for spans, length in zip((plan.time, plan.rows, plan.columns), full, strict=True):
            assert summed(spans, length).eq(1).all()


@pytest.mark.parametrize("case", golden("video_vae/tile_plan_encode"))
def test_encode_plans(case):
    for index, call in enumerate(case.call["plans"]):
        shape = (call["frames"], call["height"], call["width"])
        plan = encode_plan(shape, sizes_of(call))
        assert plan.count == call["n_tiles"]
        full = (call["frames"] // 8 + 1, call["height"] // 32, call["width"] // 32)
        check_plan(case, index, plan, full)
        for spans, length in zip((plan.time, plan.rows, plan.columns), full, strict=True):
            assert set(summed(spans, length).tolist()) <= {1.0, 2.0}


def summed(spans, length, masks=None):
    total = torch.zeros(length)
    for span, mask in zip(spans, masks or [span.mask for span in spans], strict=True):
        total[span.target] += mask
    return total


tiles = st.builds(
    lambda tile, overlap: (tile, min(overlap, tile - 1)), st.integers(2, 9), st.integers(0, 8)
)


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 3), tiles, tiles)
def test_every_plan_covers_everything_with_total_weight_one(shape, spatial, temporal):
    sizes = TileSizes(spatial[0] * 32, spatial[1] * 32, temporal[0] * 8, temporal[1] * 8)
    plan = decode_plan(shape, sizes)
    full = (8 * shape[0] - 7, 32 * shape[1], 32 * shape[2])
    for spans, length in zip((plan.time, plan.rows, plan.columns), full, strict=True):
        assert spans[-1].out_stop == length
        weights = [weight for _, weight in weighted(spans)]
        torch.testing.assert_close(summed(spans, length, weights), torch.ones(length))


def test_the_example_of_the_specification():
    plan = decode_plan((16, 22, 40), TileSizes(512, 64, 64, 24))
    assert [(s.start, s.stop) for s in plan.time] == [(0, 8), (4, 13), (9, 16)]
    assert [(s.out_start, s.out_stop) for s in plan.time] == [(0, 57), (32, 97), (72, 121)]
    assert [(s.start, s.stop) for s in plan.rows] == [(0, 9), (7, 16), (14, 22)]
    assert [(s.start, s.stop) for s in plan.columns] == [(0, 16), (14, 30), (28, 40)]
    assert plan.describe() == "27 tiles: 3 x 3 x 3"


@pytest.mark.parametrize(
    "sizes",
    [
        {"spatial": 32, "spatial_overlap": 0},
        {"spatial": 100},
        {"spatial": 64, "spatial_overlap": 64},
        {"spatial_overlap": 16},
        {"spatial_overlap": -32},
        {"temporal": 8, "temporal_overlap": 0},
        {"temporal": 20},
        {"temporal_overlap": 80},
        {"temporal_overlap": 4},
    ],
)
def test_sizes_off_the_grid_are_refused(sizes):
    with pytest.raises(SizeError):
        TileSizes(**sizes)


def test_encode_checks_the_overlap_after_raising_it():
    with pytest.raises(SizeError, match="temporal overlap"):
        encode_plan((33, 64, 64), TileSizes(None, 0, 16, 8))
    with pytest.raises(SizeError, match="spatial overlap"):
        encode_plan((33, 64, 64), TileSizes(64, 32, None))
    with pytest.raises(SizeError, match="8k"):
        encode_plan((32, 64, 64), TileSizes())
