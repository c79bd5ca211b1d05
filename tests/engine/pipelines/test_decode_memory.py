"""Decode goes on where memory ended: exactly where it can, in tiles where it must."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from aiprod_engine import timing
from aiprod_engine.errors import OutOfMemory
from aiprod_engine.memory.placed import Placed
from aiprod_engine.memory.plan import Need, Way
from aiprod_engine.memory.residency import Residency
from aiprod_engine.models.video_vae import streaming
from aiprod_engine.models.video_vae.blocks import Conv
from aiprod_engine.models.video_vae.streaming import look_ahead
from aiprod_engine.pipelines import decode
from aiprod_engine.pipelines.decode import decode_frames, decode_ways, pixel_chunks
from aiprod_engine.tiling import TileSizes
from aiprod_engine.types import AVLatent
from aiprod_engine.weights import load


@pytest.fixture(scope="module")
def decoder(tiny):
    return load("video_decoder", tiny.files["video_decoder"], dtype=torch.float32)


@pytest.fixture
def clip(decoder):
    """Longer than the look-ahead, wider than the smallest tiles."""
    frames = look_ahead(decoder.config) + 25
    frames += (1 - frames) % 8
    generator = torch.Generator().manual_seed(4)
    size = (timing.latent_frames(frames), 2, 6)
    video = torch.randn(1, decoder.config.latent_channels, *size, generator=generator)
    return AVLatent(video, None, frames, 64, 192, 24.0, "2.3")


@pytest.fixture
def fail_at(monkeypatch):
    """`fail_at(n, ...)`: convolution calls n, ... run out of memory; returns the calls so far."""
    window, calls = Conv.window, []

    def install(*at):
        calls.clear()

        def failing(self, *args):
            calls.append(1)
            if len(calls) in at:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return window(self, *args)

        monkeypatch.setattr(Conv, "window", failing)
        return calls

    return install


def phase(decoder, free=1e12, evicted=0):
    left = [1] * evicted
    need = Need("decode video", (), (Way("", 1 << 20),), "lower width or height")
    return Placed(need, [Residency(decoder)], free, evict=lambda: bool(left and left.pop()))


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
def test_streaming_goes_on_bit_for_bit_after_the_last_frame(decoder, clip, fail_at, share):
    calls = fail_at()
    expected = decode_frames(decoder, clip)
    total = len(calls)
    fail_at(round(total * share))
    heard = []
    found = decode_frames(decoder, clip, "auto", heard.append, phase(decoder, evicted=1))
    assert torch.equal(found, expected)
    assert heard == list(range(1, clip.frames + 1))


def test_emitted_frames_are_final_and_tiles_finish_the_clip(decoder, clip, fail_at, caplog):
    calls = fail_at()
    expected = decode_frames(decoder, clip)
    total = len(calls)
    fail_at(total - 20)
    chunks = list(pixel_chunks(decoder, clip, placed=phase(decoder)))
    assert "going on with" in caplog.text
    assert "overlapping tiles, an approximation" in caplog.text
    sizes = [chunk.shape[2] for chunk in chunks]
    exact = sizes.index(next(size for size in sizes if size > 1))
    assert sum(sizes) == clip.frames
    assert exact > 0
    found = torch.cat([chunk[0].movedim(0, -1) for chunk in chunks])
    assert torch.equal(((found[:exact] + 1) / 2).clamp(0, 1), expected[:exact])
    assert found.isfinite().all()


@pytest.fixture
def tall(clip):
    """Of the same area, and high enough to be cut into rows."""
    return replace(clip, video=clip.video.mT.contiguous(), height=192, width=64)


@pytest.fixture
def precise(decoder):
    """In float64, where an error shows and rounding does not."""
    return deepcopy(decoder).double()


@pytest.mark.parametrize("share", [0.2, 0.99])
def test_rows_of_a_frame_go_on_exactly_before_any_tile(precise, tall, fail_at, caplog, share):
    calls = fail_at()
    expected = list(pixel_chunks(precise, tall))
    fail_at(round(len(calls) * share))
    found = list(pixel_chunks(precise, tall, placed=phase(precise)))
    assert caplog.messages == [
        "decode video ran out of memory; going on with frame by frame, 32 rows at a time"
    ]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_blocks_of_an_accelerator_become_smaller_and_go_on(
    precise, tall, fail_at, caplog, monkeypatch
):
    expected = list(pixel_chunks(precise, tall))
    monkeypatch.setattr(decode, "pieces", lambda _, rows: streaming.pieces("cuda", rows))
    calls = fail_at()
    next(pixel_chunks(precise, tall))
    first = len(calls)
    fail_at(first, first + 1, first + 200)
    found = list(pixel_chunks(precise, tall, placed=phase(precise)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert [message.rpartition("with ")[2] for message in caplog.messages] == [
        "4 frames at a time", "2 frames at a time", "frame by frame"
    ]  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_exact_ways_come_before_tiles(decoder, device):
    ways = decode_ways(decoder.config, (16, 34, 60), 2, device=device)
    streamed = [way.name for way in ways if way.sizes is None]
    blocks = ["8 frames at a time", "4 frames at a time", "2 frames at a time"]
    exact = ["frame by frame", "frame by frame, 32 rows at a time"]
    assert streamed == (exact if device == "cpu" else blocks + exact)
    assert [way.name for way in ways[: len(streamed)]] == streamed
    needed = [way.activations for way in ways]
    assert needed == sorted(needed, reverse=True)


def test_after_the_smallest_tiles_the_cpu_goes_on_exactly(decoder, clip, fail_at, caplog):
    expected = decode_frames(decoder, clip)
    fail_at(1, 2)
    placed = phase(decoder)
    placed.need = replace(placed.need, may_leave=True)
    assert torch.equal(decode_frames(decoder, clip, placed=placed), expected)
    assert "the CPU, slowly" in caplog.text


def test_the_last_resort_ends_with_a_sentence(decoder, clip, fail_at):
    fail_at(*range(1, 5000))
    with pytest.raises(OutOfMemory, match=r"decode video must fit .* lower width or height"):
        decode_frames(decoder, clip, placed=phase(decoder, free=1 << 20))


def test_free_memory_chooses_the_way(decoder, clip, caplog):
    ways = decode_ways(decoder.config, clip.video.shape[2:], 4)
    streamed, tiles = ways[0], ways[-1]
    assert (streamed.name, streamed.sizes) == ("frame by frame", None)
    assert tiles.sizes == TileSizes(128, 32)
    assert tiles.activations < streamed.activations
    ample = next(pixel_chunks(decoder, clip, placed=phase(decoder)))
    assert (ample.shape[2], caplog.text) == (1, "")
    little = phase(decoder, free=tiles.activations / 0.9 + 1)
    assert next(pixel_chunks(decoder, clip, placed=little)).shape[2] > 1
    assert "overlapping tiles, an approximation, to fit into memory" in caplog.text


def test_ways_become_smaller(decoder):
    latent = (16, 34, 60)  # 1920 x 1088, 121 frames
    for tiling, count in (("off", 7), ("auto", 6), ("tiled", 4)):
        ways = decode_ways(decoder.config, latent, 2, tiling)
        assert len(ways) == count
        needed = [way.activations for way in ways]
        assert needed == sorted(needed, reverse=True)


def test_a_wish_for_the_whole_clip_falls_back_to_streaming(decoder, clip, monkeypatch):
    def fail(*_):
        raise torch.cuda.OutOfMemoryError

    expected = decode_frames(decoder, clip)
    monkeypatch.setattr(type(decoder), "forward", fail)
    assert torch.equal(decode_frames(decoder, clip, "off"), expected)
