import pytest
import torch
from goldens import golden

from aiprod_engine.errors import SizeError
from aiprod_engine.latents.long_video import (
    conform_length,
    overlap_blend,
    splice,
    temporal_subsample,
)


@pytest.mark.parametrize("case", golden("conditioning/conform_length"))
def test_conform_length(case):
    for name in ("long", "short"):
        case.check(name, conform_length(case.inputs[name], case.call["frames"]))


@pytest.mark.parametrize("case", golden("conditioning/temporal_subsample"))
def test_temporal_subsample(case):
    for factor in case.call["factors"]:
        case.check(f"video.{factor}", temporal_subsample(case.inputs["video"], factor))


@pytest.mark.parametrize("case", golden("conditioning/overlap_blend"))
def test_overlap_blend(case):
    call = case.call
    joined = overlap_blend(
        case.inputs["first"], case.inputs["second"], call["overlap"], call["axis"]
    )
    case.check("joined", joined)


def test_splice_drops_the_first_new_latent():
    old, new = torch.zeros(1, 2, 6, 1, 1), torch.ones(1, 2, 7, 1, 1)
    assert splice(old, new, 3)[0, 0, :, 0, 0].tolist() == pytest.approx(
        [0, 0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1]
    )
    assert splice(old, new, 1).shape[2] == 12  # nothing is blended


def test_overlap_beyond_a_part_raises():
    with pytest.raises(SizeError, match="overlap"):
        overlap_blend(torch.zeros(1, 1, 2), torch.zeros(1, 1, 5), 3)
