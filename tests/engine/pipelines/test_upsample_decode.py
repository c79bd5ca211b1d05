"""A clip's latents on a finer grid, and its latents as frames and sound."""

import pytest
import torch

from aiprod_engine import timing
from aiprod_engine.errors import MismatchError
from aiprod_engine.media.pixels import to_image
from aiprod_engine.pipelines.decode import decode_frames, decode_track, pixel_chunks
from aiprod_engine.pipelines.upsample import upsample
from aiprod_engine.types import AVLatent
from aiprod_engine.weights import load


def clip_of(frames=17):
    generator = torch.Generator().manual_seed(4)
    video = torch.randn(1, 8, timing.latent_frames(frames), 2, 3, generator=generator)
    audio = torch.randn(1, 1, timing.audio_latents(frames, 24.0), 16, generator=generator)
    return AVLatent(video, audio, frames, 64, 96, 24.0, "2.3")


@pytest.mark.parametrize(
    ("temporal", "expected"), [(False, (17, 128, 192, 24.0)), (True, (33, 64, 96, 48.0))]
)
def test_upsampling_states_the_new_size_and_rate(
    temporal, expected, tiny, tmp_path, write_upsampler
):
    path = write_upsampler(tmp_path / "up.safetensors", 8, temporal)
    clip = clip_of()
    done = upsample(load("upsampler", path, dtype=torch.float32), tiny.statistics(), clip)
    assert (done.frames, done.height, done.width, done.fps) == expected
    assert done.frames == timing.pixel_frames(done.video.shape[2])
    assert torch.equal(done.audio, clip.audio)
    assert (done.frames - 1) / done.fps == (clip.frames - 1) / clip.fps
    assert done.version == "2.3"


def test_upsampling_needs_a_picture(tiny, tmp_path, write_upsampler):
    path = write_upsampler(tmp_path / "up.safetensors", 8)
    with pytest.raises(MismatchError, match="no video to upsample"):
        upsample(load("upsampler", path), tiny.statistics(), AVLatent(None, None, 9, 64, 96, 24.0))


def test_every_tiling_yields_all_frames_in_order(tiny):
    clip, heard = clip_of(), []
    with tiny.use("video_decoder") as decoder:
        whole = decode_frames(decoder, clip, "off")
        streamed = decode_frames(decoder, clip, on_frames=heard.append)
        chunks = [to_image(chunk) for chunk in pixel_chunks(decoder, clip, "tiled")]
        with pytest.raises(MismatchError, match="tiling must be one of"):
            pixel_chunks(decoder, clip, "some")
        with pytest.raises(MismatchError, match="no video to decode"):
            pixel_chunks(decoder, AVLatent(None, None, 9, 64, 96, 24.0))
    # float32 in another order: one unit in the last place of a latent moves pixels by 5e-5
    torch.testing.assert_close(streamed, whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat(chunks), streamed, atol=1e-6, rtol=0)  # one tile
    assert heard == list(range(1, 18))


@pytest.mark.parametrize("frames", [1, 9, 25, 41])
def test_the_track_is_as_long_as_the_picture(frames, tiny):
    clip = clip_of(frames)
    with tiny.use("audio_decoder") as decoder, tiny.use("vocoder") as vocoder:
        track, rate = decode_track(decoder, vocoder, clip)
        with pytest.raises(MismatchError, match="no sound to decode"):
            decode_track(decoder, vocoder, AVLatent(None, None, 9, 64, 96, 24.0))
    assert track.shape[-1] == round(frames / 24.0 * rate)
    assert track.isfinite().all()
