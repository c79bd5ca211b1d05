"""Streamed encode holds the same bytes whatever the length; only the latents add up, on the CPU."""

import pytest
import torch

from aiprod_engine.models.video_vae import Piece, VideoEncoder, VideoVAEConfig
from aiprod_engine.pipelines.encode import encode_video
from aiprod_engine.weights.presets import preset


@pytest.fixture(params=["2.0", "2.3"])
def encoder(request):
    """The published order of layers, one residual block a stage."""
    section = preset("vae", request.param)
    blocks = [
        [name, {"num_layers": 1} if name == "res_x" else options]
        for name, options in section["encoder_blocks"]
    ]
    section |= {"encoder_blocks": blocks, "encoder_base_channels": 8, "latent_channels": 8}
    with torch.device("meta"):
        encoder = VideoEncoder(VideoVAEConfig.from_metadata(section))
    state = {k: torch.randn(v.shape) * 0.05 for k, v in encoder.state_dict().items()}
    encoder.load_state_dict(state, assign=True)
    return encoder.eval().requires_grad_(False)


@pytest.mark.parametrize("piece", [Piece(), Piece(8), Piece(rows=5)])
def test_streamed_peak_does_not_depend_on_the_length(encoder, piece, peak_bytes):
    def peak(count):
        frames = (torch.zeros(1, 3, 64, 96) for _ in range(count))
        held = 2 * 8 * (count // 8 + 1) * 2 * 3 * 4  # latents, one by one and together
        return peak_bytes(lambda: encode_video(encoder, frames, piece)) - held

    assert peak(81) == pytest.approx(peak(33), rel=0.02)
