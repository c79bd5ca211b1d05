"""Encode streams in what memory allows, and says which way it takes."""

import pytest
import torch

from aiprod_engine.memory.placed import Placed
from aiprod_engine.memory.plan import Need
from aiprod_engine.memory.residency import Residency
from aiprod_engine.models.video_vae import VideoEncoder, VideoVAEConfig
from aiprod_engine.models.video_vae.blocks import Conv
from aiprod_engine.pipelines.encode import encode_video, encode_ways
from aiprod_engine.pipelines.encoders import encoders
from aiprod_engine.types import AVLatent
from aiprod_engine.weights.presets import preset

BLOCKS = ["8 frames at a time", "4 frames at a time", "2 frames at a time"]
EXACT = ["frame by frame", "frame by frame, 32 rows at a time"]


def frames(height, width):
    generator = torch.Generator().manual_seed(6)
    return list(torch.rand(9, 1, 3, height, width, generator=generator) * 2 - 1)


def config(version, **changes):
    return VideoVAEConfig.from_metadata(preset("vae", version) | changes)


@pytest.fixture
def encoder():
    """The layout of 2.3 at a quarter of the width, in float64."""
    with torch.device("meta"):
        encoder = VideoEncoder(config("2.3", encoder_base_channels=32, latent_channels=8))
    state = {k: torch.randn(v.shape) * 0.02 for k, v in encoder.state_dict().items()}
    encoder.load_state_dict(state, assign=True)
    return encoder.double().requires_grad_(False)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_encoding_goes_on_exactly_in_smaller_pieces(encoder, device, monkeypatch, caplog):
    pixels = frames(480, 32)
    expected = encode_video(encoder, pixels)
    ways = encode_ways(encoder.config, 480, 32, 8, device)
    placed = Placed(Need("encode guides", (), ways), [Residency(encoder)], 1e12)
    window, calls = Conv.window, []

    def failing(self, *args):
        calls.append(1)
        if len(calls) in (2, 30, 60, 90)[: len(ways) - 1]:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return window(self, *args)

    monkeypatch.setattr(Conv, "window", failing)
    found = placed.run(lambda encoder: encode_video(encoder, pixels, placed.way.piece))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # float32 leaves the encoder
    named = [message.rpartition("going on with ")[2] for message in caplog.messages]
    assert named == (EXACT[1:] if device == "cpu" else BLOCKS[1:] + EXACT)


def test_guides_say_how_they_are_encoded(tiny, caplog):
    caplog.set_level("INFO")
    encoders(tiny, AVLatent(None, None, 9, 64, 96, 24.0)).video(frames(64, 96))
    (plan,) = caplog.messages
    assert plan.startswith("encode guides: needs")
    assert plan.endswith("frame by frame")


@pytest.mark.parametrize("version", ["2.0", "2.3"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_ways_become_smaller(version, device):
    ways = encode_ways(config(version), 1088, 1920, 2, device)
    needed = [way.activations for way in ways]
    assert needed == sorted(needed, reverse=True)
    assert [way.name for way in ways] == (EXACT if device == "cpu" else BLOCKS + EXACT)
