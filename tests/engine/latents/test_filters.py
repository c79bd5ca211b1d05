"""Corrections of a latent's colours."""

import pytest
import torch
from goldens import golden

from aiprod_engine.errors import SizeError
from aiprod_engine.latents.filters import adain, tone_map


@pytest.mark.parametrize("case", golden("conditioning/latent_adain"))
def test_latent_adain(case):
    x, reference, factor = case.inputs["latent"], case.inputs["reference"], case.call["factor"]
    case.check("per_channel", adain(x, reference, factor))
    case.check("per_frame", adain(x, reference, factor, per_frame=True))
    with pytest.raises(SizeError, match="reference frame"):
        adain(reference, x, factor, per_frame=True)


def test_adain_takes_over_the_statistics():
    x, reference = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3, 2, 7, 3) * 3 + 1
    moved = adain(x, reference)
    torch.testing.assert_close(moved.std((2, 3, 4)), reference.std((2, 3, 4)))
    torch.testing.assert_close(adain(x, reference, 0.0), x)
    flat = adain(torch.ones(1, 3, 2, 2, 2), reference[:1])
    torch.testing.assert_close(flat.mean((2, 3, 4)), reference[:1].mean((2, 3, 4)))


@pytest.mark.parametrize("case", golden("upsampler/adain_and_tone_map"))
def test_adain_and_tone_map(case):
    latent, reference = case.inputs["latent"], case.inputs["reference"]
    for factor in case.call["adain_factors"]:
        case.check(f"adain_{factor}", adain(latent, reference, factor))
    for compression in case.call["tone_map"]:
        case.check(f"tone_map_{compression}", tone_map(latent, compression))
