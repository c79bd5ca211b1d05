"""Whole encoders and decoders against ltx-core 1.0.0, float32 on the CPU, and their properties."""

import pytest
import torch
from goldens import Case, golden

from aiprod_engine.errors import MismatchError, SizeError
from aiprod_engine.tiling import TileSizes, decode_plan, encode_plan, tiled_decode, tiled_encode

ENCODERS = golden("video_vae/encoder_20", "video_vae/encoder_23", "video_vae/encoder_25")
DECODERS = golden("video_vae/decoder_20", "video_vae/decoder_23")
CONDITIONED = golden("video_vae/decoder_timestep_conditioned")


@pytest.mark.parametrize("case", ENCODERS)
def test_encoder_matches_reference(case, build):
    encoder = build("encoder", case.config["vae"], case.weights)
    video = case.inputs["video"]
    case.check("latent", encoder(video))
    case.check("latent_first_frame", encoder(video[:, :, :1]))


@pytest.mark.parametrize("case", DECODERS)
def test_decoder_matches_reference(case, build):
    decoder = build("decoder", case.config["vae"], case.weights)
    latent = case.inputs["latent"]
    case.check("video", decoder(latent))
    case.check("video_first_latent", decoder(latent[:, :, :1]))


@pytest.mark.parametrize("case", golden("video_vae/decoder_causal_flag"))
def test_causal_decoder_matches_reference(case, build):
    decoder = build("decoder", case.config["vae"], case.weights)
    case.check("video", decoder(case.inputs["latent"]))


@pytest.mark.parametrize("case", CONDITIONED)
def test_conditioned_decoder_matches_reference(case, build):
    decoder = build("decoder", case.config["vae"], case.weights)
    latent = case.inputs["latent"]
    case.check("video", decoder(latent, time=0.05))
    case.check("video_t025", decoder(latent, time=0.25))
    noisy = decoder(latent, noise=torch.ones_like(latent))
    torch.testing.assert_close(noisy, decoder(0.025 + 0.975 * latent))


@pytest.mark.parametrize(
    "case",
    golden("checkpoints/ltx2_20_tiny.expected", "checkpoints/ltx2_23_tiny.expected"),
)
def test_tiny_checkpoints_match_reference(case, build):
    weights = Case(case.name.removesuffix(".expected")).tensors
    weights = {k: v for k, v in weights.items() if k.startswith("vae.")}
    encoder = build("encoder", case.config["vae"], weights)
    case.check("video_encoder.latent", encoder(case.inputs["video_encoder.pixels"]))
    decoder = build("decoder", case.config["vae"], weights)
    case.check("video_decoder.pixels", decoder(case.inputs["video_decoder.latent"]))


@pytest.mark.parametrize("case", golden("video_vae/tiled_decode_23"))
def test_tiled_decode_matches_reference(case, build):
    call, latent = case.call, case.inputs["latent"]
    sizes = TileSizes(
        call["tile_size_in_pixels"],
        call["tile_overlap_in_pixels"],
        call["tile_size_in_frames"],
        call["tile_overlap_in_frames"],
    )
    plan = decode_plan(latent.shape[2:], sizes)
    assert plan.count == call["n_tiles"]
    chunks = list(tiled_decode(build("decoder", case.config["vae"], case.weights), latent, plan))
    assert [c.shape[2] for c in chunks] == case.outputs["chunk_frames"].tolist()
    step = call["subsample_hw"]
    case.check("video_subsampled", torch.cat(chunks, dim=2)[..., ::step, ::step])


@pytest.mark.parametrize("case", golden("video_vae/tiled_encode_23"))
def test_tiled_encode_matches_reference(case, build):
    call = case.call
    scale = call["nearest_upsample_hw"]
    video = case.inputs["video_small"].repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    encoder = build("encoder", case.config["vae"], case.weights)
    sizes = TileSizes(
        call["tile_size_in_pixels"],
        call["tile_overlap_in_pixels"],
        call["tile_size_in_frames"],
        call["tile_overlap_in_frames"],
    )
    plan = encode_plan(video.shape[2:], sizes)
    assert plan.count == call["n_tiles"]
    case.check("latent_tiled", tiled_encode(encoder, video, plan))
    case.check("latent_untiled", encoder(video))


@pytest.mark.parametrize("case", ENCODERS)
def test_every_encoder_weight_matters(case, build):
    encoder = build("encoder", case.config["vae"], case.weights)
    channels = encoder.config.latent_channels
    assert_every_weight_matters(encoder, case.inputs["video"], lambda _: channels)


@pytest.mark.parametrize("case", DECODERS + CONDITIONED)
def test_every_decoder_weight_matters(case, build):
    decoder = build("decoder", case.config["vae"], case.weights)
    assert_every_weight_matters(decoder, case.inputs["latent"], len)


def assert_every_weight_matters(module, x, rows_of_last):
    """Gradients show it for all tensors at once; the log-variance row of an encoder is exempt."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for tensor in tensors.values():
        tensor.requires_grad_(True)
    module(x).square().sum().backward()
    for name, tensor in tensors.items():
        rows = rows_of_last(tensor) if name.startswith("conv_out") else None
        gradient = tensor.grad[:rows] if tensor.ndim else tensor.grad
        assert gradient.abs().max() > 0, name
        if name == "conv_out.conv.bias":
            assert not tensor.grad[rows:].any()


@pytest.mark.parametrize("case", ENCODERS + DECODERS)
def test_batch_and_repetition(case, build):
    side, key = ("encoder", "video") if "video" in case.inputs else ("decoder", "latent")
    module = build(side, case.config["vae"], case.weights).double()
    x = torch.cat((case.inputs[key], case.inputs[key].flip(-1).neg())).double()
    whole = module(x)
    parts = torch.cat([module(part) for part in x.split(1)])
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-10)
    assert torch.equal(whole, module(x))


@pytest.mark.parametrize("case", golden("video_vae/encoder_20", "video_vae/decoder_20"))
def test_bfloat16_is_close_and_keeps_the_dtype_of_the_input(case, build):
    """Rounding to 8 bits after each of some 20 operations: 5 % of the signal."""
    side, key = ("encoder", "video") if "video" in case.inputs else ("decoder", "latent")
    module = build(side, case.config["vae"], case.weights)
    exact = module(case.inputs[key])
    rough = module.bfloat16()(case.inputs[key])
    assert rough.dtype == torch.float32
    assert (rough - exact).pow(2).mean().sqrt() < 0.05 * exact.pow(2).mean().sqrt()
    assert module(case.inputs[key].bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("case", golden("video_vae/encoder_20"))
def test_encoder_drops_an_incomplete_group_and_is_causal(case, build, caplog):
    encoder = build("encoder", case.config["vae"], case.weights)
    video = case.inputs["video"]
    whole = encoder(video)
    assert not caplog.records
    assert torch.equal(encoder(video[:, :, :14]), encoder(video[:, :, :9]))
    assert "drops the last 5 of 14 frames" in caplog.text
    torch.testing.assert_close(whole[:, :, :2], encoder(video[:, :, :9]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", golden("video_vae/encoder_20"))
@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (9, 2), (17, 3), (121, 16), (120, 15)])
def test_frame_counts(frames, latents, case, build):
    encoder = build("encoder", case.config["vae"], case.weights)
    assert encoder(torch.zeros(1, 3, frames, 32, 32)).shape[2] == latents


@pytest.mark.parametrize("case", golden("video_vae/encoder_20"))
def test_encoder_refuses_other_sizes(case, build):
    encoder = build("encoder", case.config["vae"], case.weights)
    for shape in ((1, 3, 1, 48, 32), (1, 3, 1, 32, 0), (1, 4, 1, 32, 32), (3, 1, 32, 32)):
        with pytest.raises(SizeError):
            encoder(torch.zeros(shape))


@pytest.mark.parametrize("case", golden("video_vae/decoder_20"))
def test_decoder_refuses_other_latents(case, build):
    decoder = build("decoder", case.config["vae"], case.weights)
    for shape in ((1, 4, 1, 1, 2), (1, 4, 1, 2, 1), (1, 4, 0, 2, 2), (4, 1, 2, 2)):
        with pytest.raises(SizeError):
            decoder(torch.zeros(shape))
    with pytest.raises(MismatchError, match="4 latent channels"):
        decoder(torch.zeros(1, 5, 1, 2, 2))
