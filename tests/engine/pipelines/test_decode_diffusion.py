"""Decode with the 2.5 diffusion decoder: from a file in the published format to frames."""

from dataclasses import replace

import pytest
import torch
from tiny_checkpoint import write_diffusion_vae

import aiprod_engine as engine
from aiprod_engine.errors import OutOfMemory, UnsupportedConfig
from aiprod_engine.memory.placed import Placed
from aiprod_engine.memory.plan import Need, Way
from aiprod_engine.memory.residency import Residency
from aiprod_engine.models.diffusion_vae import DiffusionDecoder, DiffusionDecoderConfig
from aiprod_engine.pipelines.decode import decode_frames, decode_ways, pixel_chunks
from aiprod_engine.pipelines.decode_diffusion import cell_grid
from aiprod_engine.pipelines.planning import decoding_need, preview_need
from aiprod_engine.types import AVLatent
from aiprod_engine.weights.presets import preset
from aiprod_engine.weights.recipe import Recipe

FRAMES, HEIGHT, WIDTH = 25, 64, 160


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_diffusion_vae(tmp_path_factory.mktemp("vae") / "video-vae.safetensors")


@pytest.fixture(scope="module")
def decoder(file):
    return engine.load("video_decoder", file, dtype=torch.float32)


@pytest.fixture(scope="module")
def clip():
    video = torch.randn(1, 16, 4, 2, 5, generator=torch.Generator().manual_seed(4))
    return AVLatent(video, None, FRAMES, HEIGHT, WIDTH, 24.0, "2.5")


@pytest.fixture(scope="module")
def whole(decoder, clip):
    return decode_frames(decoder, clip)


@pytest.fixture
def fail_at(monkeypatch):
    """`fail_at(n, ...)`: uses n, ... of the last stages run out of memory."""
    context, calls = DiffusionDecoder.context, []

    def install(*at):
        def failing(self, *args):
            calls.append(1)
            if len(calls) in at:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return context(self, *args)

        monkeypatch.setattr(DiffusionDecoder, "context", failing)

    return install


def phase(decoder, free=1e12):
    need = Need("decode video", (), (Way("", 1 << 20),), "lower width or height")
    return Placed(need, [Residency(decoder)], free)


def test_both_halves_of_the_file_are_recognised_and_loaded(file, decoder):
    info = engine.inspect(file)
    assert (info.kind, info.version) == ("video_vae", "2.5")
    assert info.components == ("video_vae_diffusion",)
    assert isinstance(decoder, DiffusionDecoder)
    latent = engine.load("video_encoder", file)(torch.zeros(1, 3, 9, 64, 96).bfloat16())
    pixels = engine.load("video_decoder", file)(latent)
    assert (pixels.shape, pixels.dtype) == ((1, 3, 9, 64, 96), torch.bfloat16)
    assert pixels.isfinite().all()


def test_a_seed_gives_the_same_frames(decoder, clip, whole):
    assert whole.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert whole.std() > 0.1
    assert torch.equal(decode_frames(decoder, clip, "off", seed=0), whole)
    assert not torch.equal(decode_frames(decoder, clip, seed=1), whole)
    expected = decoder(clip.video)[0].movedim(0, -1)
    assert torch.equal(whole, ((expected + 1) / 2).clamp(0, 1))


def test_tiles_are_the_whole_where_their_borders_are_out_of_sight(decoder, clip, whole):
    """Noise is that of the whole clip, so only what a window sees beyond a border may differ."""
    heard = []
    tiled = decode_frames(decoder, clip, "tiled", heard.append)
    (way, *_) = decode_ways(decoder.config, clip.video.shape[2:], 4, "tiled")
    grid = cell_grid(decoder.config, clip.video.shape[2:])
    assert way.tile != grid.size
    assert heard[-1] == FRAMES
    assert not torch.equal(tiled, whole)
    # Cells of the first and last tile that no other tile touches, less the reach of both stages.
    reach = [window // 2 + least for window, least in zip(
        decoder.config.stages[-2].window, grid.overlap, strict=True)]  # fmt: skip
    axis = next(i for i in (2, 1, 0) if way.tile[i] != grid.size[i])
    kept = grid.cell[axis] * (way.tile[axis] - grid.overlap[axis] - reach[axis])
    assert kept > 0
    near = [slice(None)] * 4
    near[axis] = slice(0, kept)
    torch.testing.assert_close(tiled[tuple(near)], whole[tuple(near)], rtol=0, atol=1e-4)


def test_every_plan_of_tiles_yields_all_frames(decoder, clip, whole):
    ways = decode_ways(decoder.config, clip.video.shape[2:], 4)
    needed = [way.activations for way in ways]
    assert needed == sorted(needed, reverse=True)
    assert len(set(needed)) == len(ways) > 2
    with torch.inference_mode():
        chunks = list(ways[-1].chunks(decoder, clip.video))
    assert len(chunks) > 1
    video = torch.cat(chunks, dim=2)[0].movedim(0, -1)
    assert video.shape == whole.shape
    assert video.isfinite().all()


def test_memory_that_ends_is_answered_with_tiles(decoder, clip, whole, fail_at, caplog):
    fail_at(1)
    chunks = list(pixel_chunks(decoder, clip, placed=phase(decoder)))
    assert "overlapping tiles, an approximation" in caplog.text
    assert sum(chunk.shape[2] for chunk in chunks) == FRAMES
    (second, *_) = decode_ways(decoder.config, clip.video.shape[2:], 4, "tiled")
    with torch.inference_mode():
        expected = torch.cat(list(second.chunks(decoder, clip.video)), dim=2)
    assert torch.equal(torch.cat(chunks, dim=2), expected)


def test_what_was_handed_out_is_final(decoder, clip, fail_at):
    ways = decode_ways(decoder.config, clip.video.shape[2:], 4)
    in_time = next(way for way in ways if way.tile and way.tile[0] < cell_grid(
        decoder.config, clip.video.shape[2:]).size[0])  # fmt: skip
    room = in_time.activations / 0.9 + 1
    expected = list(pixel_chunks(decoder, clip, placed=phase(decoder, room)))
    spans = len(expected)
    assert spans > 1
    tiles = int(in_time.name.split()[0])
    fail_at(tiles)  # in the last group
    chunks = list(pixel_chunks(decoder, clip, placed=phase(decoder, room)))
    assert sum(chunk.shape[2] for chunk in chunks) == FRAMES
    assert torch.equal(chunks[0], expected[0])


def test_the_smallest_tiles_go_on_at_the_cpu(decoder, clip, fail_at, caplog):
    ways = decode_ways(decoder.config, clip.video.shape[2:], 4)
    fail_at(1)
    placed = phase(decoder, free=1)
    placed.need = replace(placed.need, may_leave=True)
    frames = decode_frames(decoder, clip, placed=placed)
    assert "the CPU, slowly" in caplog.text
    with torch.inference_mode():
        expected = torch.cat(list(ways[-1].chunks(decoder, clip.video)), dim=2)
    expected = ((expected[0].movedim(0, -1) + 1) / 2).clamp(0, 1)
    assert torch.equal(frames, expected)


def test_the_last_resort_ends_with_a_sentence(decoder, clip, fail_at):
    fail_at(*range(1, 5000))
    with pytest.raises(OutOfMemory, match="lower width or height"):
        decode_frames(decoder, clip, placed=phase(decoder, free=1 << 20))


def test_small_clips_decode_with_tiling_too(decoder):
    latent = torch.randn(1, 16, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    clip = AVLatent(latent, None, 1, 64, 64, 24.0, "2.5")
    for tiling in ("auto", "tiled", "off"):
        assert decode_frames(decoder, clip, tiling).shape == (1, 64, 64, 3)


def test_the_plan_of_a_published_decoder():
    config = DiffusionDecoderConfig.from_metadata(preset("vae_diffusion", "2.5"))
    ways = decode_ways(config, (16, 22, 40), 2)
    assert ways[0].name == "all at once"
    assert ways[-1].tile == (40, 40, 40)  # 80 frames, 320 x 320 pixels
    amounts = [way.activations / 2**30 for way in ways]
    assert 15 < amounts[0] < 20
    assert amounts[-1] < 3


def test_planning_knows_the_decoder_and_has_no_preview_for_it(file, clip):
    recipe = Recipe("video_decoder", (file,))
    need = decoding_need(recipe, clip)
    assert need.ways[0].name == "all at once"
    assert need.networks[0].total > 0
    with pytest.raises(UnsupportedConfig, match="conv video VAE"):
        preview_need(recipe)
