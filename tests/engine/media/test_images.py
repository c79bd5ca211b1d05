import io

import numpy as np
import pytest
import torch
from goldens import golden
from PIL import Image, ImageCms

from aiprod_engine.media.images import (
    decode_image,
    fill_resize,
    fit_and_pad,
    frames_to_video,
    prompt_image,
    recompress,
)


@pytest.mark.parametrize("case", golden("conditioning/image_resize_crop"))
def test_fill_resize_and_crop(case):
    for i, (height, width) in enumerate(case.call["targets"]):
        case.check(f"pixels.{i}", frames_to_video([case.inputs["image"]], height, width))


@pytest.mark.parametrize("case", golden("conditioning/video_reflect_pad"))
def test_fit_and_reflect_pad(case):
    frames = case.inputs["video"][0].transpose(0, 1)  # (F, 3, H, W)
    for i, (height, width) in enumerate(case.call["targets"]):
        padded = fit_and_pad(frames, height, width)
        case.check(f"video.{i}", padded.transpose(0, 1)[None])


def test_frames_may_come_from_a_decoder():
    frames = torch.randint(0, 256, (3, 20, 31, 3), dtype=torch.uint8)
    video = frames_to_video(iter(frames), 16, 24)
    assert video.shape == (1, 3, 3, 16, 24)
    one = frames_to_video([frames[2]], 16, 24)
    torch.testing.assert_close(video[:, :, 2:], one, rtol=0, atol=0)


def test_rounding_noise_may_add_a_pixel():
    """Where side * (target / side) exceeds the target in double precision, ceil adds one."""
    side, target = next(
        (s, t) for s in range(2, 200) for t in range(1, s) if s * (t / s) > t and s % t
    )
    pixels = torch.rand(1, 3, side, side)
    larger = torch.nn.functional.interpolate(
        pixels, (target + 1, target + 1), mode="bilinear", align_corners=False
    )
    resized = fill_resize(pixels, target, target)
    torch.testing.assert_close(resized, larger[..., :target, :target], rtol=0, atol=0)


def picture(size=(9, 6)):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def stored(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1), (2, 0), (5, 0)])
def test_exif_orientation(orientation, turns):
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = np.rot90(np.array(image), turns)
    decoded = decode_image(stored(image, exif=exif))
    assert decoded.dtype == torch.uint8
    assert np.array_equal(decoded.numpy(), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((6, 9), 40_000, dtype=np.uint16))
    else:
        image = picture().convert(mode)
    decoded = decode_image(stored(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert decoded.shape == (6, 9, 3)
    if mode == "I;16":
        assert decoded.unique().tolist() == [40_000 >> 8]


def test_alpha_is_dropped():
    image = picture()
    transparent = image.copy()
    transparent.putalpha(0)
    assert np.array_equal(decode_image(stored(transparent)).numpy(), np.array(image))


def test_profiles_become_srgb():
    image = picture()
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    decoded = decode_image(stored(image, icc_profile=same))
    assert np.abs(decoded.numpy().astype(int) - np.array(image)).max() <= 1
    assert np.array_equal(decode_image(stored(image, icc_profile=b"x")).numpy(), np.array(image))
    # A profile with red and blue primaries exchanged: what it calls red is sRGB's blue.
    tags = bytearray(same)
    for old, new in ((b"rXYZ", b"\0RED"), (b"bXYZ", b"rXYZ"), (b"\0RED", b"bXYZ")):
        at = tags.index(old)
        tags[at : at + 4] = new
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    decoded = decode_image(stored(red, icc_profile=bytes(tags)))
    assert decoded[0, 0, 2] > 250 > 5 > decoded[0, 0, 0]


def test_recompression_passes_through():
    image = torch.randint(0, 256, (7, 9, 3), dtype=torch.uint8)
    assert recompress(image, 0) is image
    assert recompress(image[:1], 33).shape == (1, 9, 3)
    assert recompress(image[:, :1], 33).shape == (7, 1, 3)


def test_recompression_crops_to_even_and_loses_detail():
    image = torch.randint(0, 256, (65, 49, 3), dtype=torch.uint8)
    before = image.clone()
    coded = recompress(image, 33)
    assert coded.shape == (64, 48, 3)
    assert coded.dtype == torch.uint8
    assert not torch.equal(coded, image[:64, :48])
    assert torch.equal(image, before)
    flat = torch.full((64, 48, 3), 128, dtype=torch.uint8)
    assert (recompress(flat, 18).int() - 128).abs().max() <= 2


def test_prompt_image():
    small = prompt_image(torch.full((30, 60, 3), 77, dtype=torch.uint8))
    assert small.shape == (448, 896, 3)
    assert small.unique().tolist() == [77]
    assert prompt_image(torch.zeros(1200, 900, 3, dtype=torch.uint8)).shape == (896, 672, 3)
