"""The whole diffusion decoder against diffusers 0.42.1, float32 on the CPU, and its properties."""

import gzip
import json
from math import prod
from pathlib import Path

import pytest
import torch
from goldens import golden

from aiprod_engine.errors import MismatchError, SizeError
from aiprod_engine.models.diffusion_vae import decode_noise
from aiprod_engine.models.diffusion_vae.config import DiffusionDecoderConfig

MANIFEST = Path(__file__).parents[3] / "manifests/video-vae-2.5-diffusion.json.gz"
CASE = golden("video_vae/diffvae_decoder_25")


@pytest.mark.parametrize("case", CASE)
@pytest.mark.parametrize("piece", [64, 1 << 22])
def test_decoder_matches_reference(case, piece, recorded, monkeypatch):
    monkeypatch.setattr("aiprod_engine.models.diffusion_vae.blocks.PIECE", piece)
    decoder, latent, noise = recorded(case), case.inputs["latent"], case.inputs["x_t"]
    thinner = case.call["subsampled"]
    cells = decoder.cells(latent)
    case.check("stage4_input", cells)
    step = thinner["context_subsampled"]
    context = decoder.context(cells)[:, : noise.shape[2]]
    case.check("context_subsampled", context[:, :, ::step, ::step])
    case.check("video", decoder(latent, noise))
    case.check("video", decoder.finish(cells, noise))
    step = thinner["video_2step_subsampled"]
    case.check("video_2step_subsampled", decoder(latent, noise, steps=2)[..., ::step, ::step])


def test_the_published_file_has_exactly_these_tensors(published, skeleton):
    names = json.loads(gzip.decompress(MANIFEST.read_bytes()))
    expected = {
        key.removeprefix("decoder."): shape
        for key, shape in names.items()
        if not key.startswith("encoder.") and key != "decoder.type_emb"
    }
    module = skeleton(published)
    assert {k: list(v.shape) for k, v in module.state_dict().items()} == expected
    statistics = 2 * module.config.latent_channels
    ignored = prod(names["decoder.type_emb"])
    assert sum(map(prod, expected.values())) - statistics + ignored == 417_133_744


@pytest.mark.parametrize("case", CASE)
def test_every_weight_matters(case, decoder):
    """A tile of the last stages is enough, and the cells that it comes from."""
    latent, noise = case.inputs["latent"], case.inputs["x_t"][..., :48, :48]

    def results():
        cells = decoder.cells(latent)
        return cells, decoder.finish(cells[:, :, :6, :6], noise)

    cells, pixels = results()
    for name, tensor in decoder.state_dict().items():
        kept = tensor.clone()
        tensor += 0.1 * torch.randn(tensor.shape)  # all values alike would be lost in a softmax
        other_cells, other_pixels = results()
        assert (other_pixels - pixels).abs().max() > 1e-6, name
        is_early = name.startswith(("conv_in.", "per_", *(f"det_stages.{i}" for i in range(3))))
        is_early |= name.startswith(("upsamples.0", "upsamples.1", "upsamples.2"))
        assert is_early != torch.equal(other_cells, cells), name
        tensor.copy_(kept)


@pytest.mark.parametrize("case", CASE)
def test_batch_of_two_equals_two_of_one(case, decoder):
    """Both samples get the same noise when none is given."""
    decoder = decoder.double()
    latent = torch.cat((case.inputs["latent"], case.inputs["latent"].flip(-1).neg())).double()
    whole = decoder(latent, steps=2)
    parts = torch.cat([decoder(part, steps=2) for part in latent.split(1)])
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", CASE)
def test_a_seed_gives_the_same_frames(case, decoder):
    latent = case.inputs["latent"]
    assert torch.equal(decoder(latent), decoder(latent, seed=0))
    assert not torch.equal(decoder(latent), decoder(latent, seed=1))
    noise = decode_noise(0, range(9), (1, 96, 96))
    assert torch.equal(decoder(latent), decoder(latent, noise))


def test_noise_of_a_frame_depends_on_seed_and_frame_only():
    frame = (3, 8, 5)
    whole = decode_noise(3, range(12), frame)
    assert whole.shape == (1, 3, 12, 8, 5)
    assert torch.equal(decode_noise(3, range(4, 9), frame), whole[:, :, 4:9])
    assert torch.equal(decode_noise(3, range(12), frame, torch.bfloat16), whole.bfloat16())
    assert not torch.equal(whole[:, :, 0], whole[:, :, 1])
    assert not torch.equal(decode_noise(4, range(12), frame)[:, :, 0], whole[:, :, 1])
    large = decode_noise(0, range(8), (3, 64, 64))
    assert abs(large.mean()) < 0.02
    assert abs(large.std() - 1) < 0.02


@pytest.mark.parametrize("case", CASE)
def test_bfloat16_is_close_and_keeps_the_dtype_of_the_input(case, decoder):
    """Rounding to 8 bits after each of some 40 operations: 5 % of the signal."""
    latent, noise = case.inputs["latent"], case.inputs["x_t"]
    exact = decoder(latent, noise)
    rough = decoder.bfloat16()(latent, noise)
    assert rough.dtype == torch.float32
    assert (rough - exact).pow(2).mean().sqrt() < 0.05 * exact.pow(2).mean().sqrt()
    assert decoder(latent.bfloat16(), noise).dtype == torch.bfloat16


@pytest.mark.parametrize("case", CASE)
@pytest.mark.parametrize(("frames", "rows", "columns"), [(1, 2, 3), (2, 1, 2), (1, 1, 1)])
def test_small_latents_are_extended_and_the_pixels_cut(frames, rows, columns, case, decoder):
    """Time repeats its last latent; rows and columns their edges, the odd one at the end."""
    latent = case.inputs["latent"][:, :, :frames, :rows, :columns]
    assert decoder.config.minimum == (2, 3, 3)
    time = [0, 0] if frames == 1 else [0, 1]
    middle = {1: [0, 0, 0], 2: [0, 1, 1], 3: [0, 1, 2]}
    extended = latent[:, :, time][:, :, :, middle[rows]][..., middle[columns]]
    top, left = 32 * (rows == 1), 32 * (columns == 1)
    expected = decoder(extended)[:, :, : 8 * frames - 7]
    expected = expected[..., top : top + 32 * rows, left : left + 32 * columns]
    found = decoder(latent)
    assert found.shape == (1, 1, 8 * frames - 7, 32 * rows, 32 * columns)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("case", CASE)
def test_gates_of_a_block_equal_weights_that_were_multiplied(case, recorded):
    latent, noise = case.inputs["latent"], case.inputs["x_t"]
    gates = {
        f"decoder.diff_blocks.{block}.{name}": torch.rand(16) + 0.5
        for block in range(2)
        for name in ("gate_msa", "gate_mlp", "gate_ctx")
    }
    folded = dict(case.weights)
    targets = {"gate_msa": "attn.proj", "gate_mlp": "mlp.w_down", "gate_ctx": "context_proj"}
    for key, gate in gates.items():
        block, _, name = key.rpartition(".")
        for end in ("weight", "bias"):
            target = f"{block}.{targets[name]}.{end}"
            if target in folded:
                folded[target] = gate.view(-1, *[1] * (folded[target].ndim - 1)) * folded[target]
    with_gates = recorded(case, case.weights | gates, block_gates=True)
    expected = recorded(case, folded)(latent, noise)
    torch.testing.assert_close(with_gates(latent, noise), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, recorded(case)(latent, noise), atol=1e-3)


@pytest.mark.parametrize("case", CASE)
def test_other_latents_are_refused(case, decoder):
    for shape in ((1, 6, 0, 3, 3), (6, 1, 3, 3)):
        with pytest.raises(SizeError):
            decoder(torch.zeros(shape))
    with pytest.raises(MismatchError, match="6 latent channels"):
        decoder(torch.zeros(1, 5, 2, 3, 3))


def test_sizes_of_the_published_decoder(published):
    config = DiffusionDecoderConfig.from_metadata(published)
    assert config.minimum == (3, 7, 7)
    assert config.cell == (2, 8, 8)
    assert config.tile_overlap == (20, 20, 20)
    assert config.tile_minimum == (6, 6, 6)
    assert (config.ghosts, config.ghost_cells) == (2, 8)
    assert config.canvas((16, 22, 40)) == (121, 704, 1280)
    assert list(config.levels((16, 22, 40))) == [
        (18, 22, 40),
        (18, 44, 80),
        (35, 44, 80),
        (69, 88, 160),
        (121, 176, 320),
    ]
