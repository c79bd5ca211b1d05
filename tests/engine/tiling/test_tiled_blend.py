"""Blending with a network that has no context: tiles must then give the whole exactly."""

import pytest
import torch

from aiprod_engine.errors import SizeError
from aiprod_engine.tiling import TileSizes, decode_plan, encode_plan, tiled_decode, tiled_encode


def enlarge(latent):
    """A decoder without context: each latent fills 8 x 32 x 32 pixels, the first only 1 frame."""
    pixels = latent.repeat_interleave(32, 3).repeat_interleave(32, 4)
    return pixels.repeat_interleave(8, 2)[:, :, 7:]


def shrink(pixels):
    """An encoder without context: each latent is one pixel of its cell's last frame."""
    return pixels[:, :, ::8, ::32, ::32]


@pytest.mark.parametrize(
    "sizes",
    [
        TileSizes(None, 0, None, 0),
        TileSizes(64, 32, 16, 8),
        TileSizes(96, 64, 32, 24),  # three tiles share a place
        TileSizes(96, 0, 24, 0),
        TileSizes(64, 32, None),
        TileSizes(None, 0, 32, 16),
    ],
)
def test_decode_gives_each_frame_once_in_order(sizes):
    latent = torch.randn(2, 3, 9, 5, 7)
    plan = decode_plan(latent.shape[2:], sizes)
    chunks = list(tiled_decode(enlarge, latent, plan))
    assert all(chunk.shape[2] for chunk in chunks)
    # Rounding of weights that add up to one.
    torch.testing.assert_close(torch.cat(chunks, dim=2), enlarge(latent), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [TileSizes(None, 0, None, 0), TileSizes(128, 64, 24, 16)])
def test_encode(sizes):
    pixels = torch.randn(2, 3, 49, 320, 224)
    plan = encode_plan(pixels.shape[2:], sizes)
    torch.testing.assert_close(tiled_encode(shrink, pixels, plan), shrink(pixels))


def test_sums_are_float32_and_results_have_the_dtype_of_the_input():
    latent = torch.randn(1, 3, 6, 4, 4).bfloat16()
    plan = decode_plan(latent.shape[2:], TileSizes(64, 32, 16, 8))
    video = torch.cat(list(tiled_decode(enlarge, latent, plan)), dim=2)
    assert video.dtype == torch.bfloat16
    assert torch.equal(video, enlarge(latent))


def test_nothing_is_decoded_ahead_of_the_consumer():
    calls = []
    latent = torch.randn(1, 3, 6, 2, 2)
    plan = decode_plan(latent.shape[2:], TileSizes(None, 0, 24, 8))

    def decode(x):
        calls.append(x.shape[2])
        return enlarge(x)

    chunks = tiled_decode(decode, latent, plan)
    assert calls == []
    next(chunks)
    assert len(calls) == 1


def test_a_plan_for_another_size_is_refused():
    plan = decode_plan((6, 4, 4), TileSizes(64, 32, 16, 8))
    with pytest.raises(SizeError, match="plan"):
        list(tiled_decode(enlarge, torch.zeros(1, 3, 6, 3, 4), plan))
