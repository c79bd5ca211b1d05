import pytest
import torch
from goldens import golden

from aiprod_engine.errors import SizeError
from aiprod_engine.latents.long_video import (
    conform_length,
    latent_adain,
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


@pytest.mark.parametrize("case", golden("conditioning/latent_adain"))
def test_latent_adain(case):
    x, reference, factor = case.inputs["latent"], case.inputs["reference"], case.call["factor"]
    case.check("per_channel", latent_adain(x, reference, factor))
    case.check("per_frame", latent_adain(x, reference, factor, per_frame=True))
    with pytest.raises(SizeError, match="reference frame"):
        latent_adain(reference, x, factor, per_frame=True)


def test_adain_takes_over_the_statistics():
    x, reference = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3, 2, 7, 3) * 3 + 1
    moved = latent_adain(x, reference)
    torch.testing.assert_close(moved.std((2, 3, 4)), reference.std((2, 3, 4)))
    torch.testing.assert_close(latent_adain(x, reference, 0.0), x)
    flat = latent_adain(torch.ones(1, 3, 2, 2, 2), reference[:1])
    torch.testing.assert_close(flat.mean((2, 3, 4)), reference[:1].mean((2, 3, 4)))
