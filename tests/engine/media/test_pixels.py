"""Pixels of the decoder to pictures, against ltx-core 1.0.0 and by hand."""

import pytest
import torch
from goldens import golden

from aiprod_engine.media.pixels import to_image, to_uint8


@pytest.mark.parametrize("case", golden("video_vae/pixels_to_uint8"))
def test_truncating_variant_matches_reference(case):
    case.check("uint8", to_uint8(case.inputs["video"], truncate=True))


def test_rounding_variant_is_the_inverse_of_reading():
    levels = torch.arange(256.0).view(1, 1, 1, 1, 256).expand(1, 3, 1, 1, 256)
    pixels = levels / 127.5 - 1
    assert torch.equal(to_uint8(pixels)[0, 0, :, 0], torch.arange(256, dtype=torch.uint8))
    assert to_uint8(pixels - 0.3 / 127.5).eq(to_uint8(pixels)).all()


def test_image_layout_range_and_dtype():
    pixels = torch.stack((torch.full((2, 4, 5), -3.0), torch.zeros(2, 4, 5), torch.ones(2, 4, 5)))
    image = to_image(pixels[None].bfloat16())
    assert image.shape == (2, 4, 5, 3)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert image[0, 0, 0].tolist() == [0.0, 0.5, 1.0]
