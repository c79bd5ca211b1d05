"""Frames, seconds, latents and samples: published tables, fixtures, and the drift of the track."""

import pytest
from goldens import golden
from hypothesis import given
from hypothesis import strategies as st

from aiprod_engine import timing
from aiprod_engine.errors import SizeError

# frames, fps, audio latents, mel frames, samples at 24 kHz, latents of an encoded clip that long
AUDIO_TABLE = [
    (25, 25, 25, 97, 23280, 26),
    (97, 24, 101, 401, 96240, 102),
    (97, 25, 97, 385, 92400, 98),
    (121, 24, 126, 501, 120240, 127),
    (121, 25, 121, 481, 115440, 122),
    (121, 30, 101, 401, 96240, 101),
    (121, 23.976, 126, 501, 120240, 127),
    (161, 24, 168, 669, 160560, 168),
    (241, 24, 251, 1001, 240240, 252),
    (257, 25, 257, 1025, 246000, 258),
    (481, 24, 501, 2001, 480240, 502),
    (49, 50, 24, 93, 22320, 25),
    (441, 30, 368, 1469, 352560, 368),
]
# frames, height, width, fps, latent (F, H, W), audio latents
SHAPE_TABLE = [
    (121, 512, 768, 24, (16, 16, 24), 126),
    (121, 1024, 1536, 24, (16, 32, 48), 126),
    (121, 544, 960, 25, (16, 17, 30), 121),
    (161, 1088, 1920, 24, (21, 34, 60), 168),
    (241, 512, 768, 50, (31, 16, 24), 120),
    (257, 736, 1280, 30, (33, 23, 40), 214),
]


@pytest.mark.parametrize(("frames", "fps", "latents", "mel", "samples", "encoded"), AUDIO_TABLE)
def test_audio_table(frames, fps, latents, mel, samples, encoded):
    assert timing.audio_latents(frames, fps) == latents
    assert timing.mel_frames(latents) == mel
    assert mel * 240 == samples
    clip = timing.track_samples(frames, fps, timing.AUDIO_RATE)
    assert timing.encoded_audio_latents(timing.encoded_mel_frames(clip)) == encoded


@pytest.mark.parametrize(("frames", "height", "width", "fps", "latent", "audio"), SHAPE_TABLE)
def test_shape_table(frames, height, width, fps, latent, audio):
    grid = (timing.latent_frames(frames), height // 32, width // 32)
    assert grid == latent
    assert timing.pixel_frames(latent[0]) == frames
    assert timing.audio_latents(frames, fps) == audio
    timing.check_frames(frames)
    timing.check_size(height, width)


@pytest.mark.parametrize("case", golden("conditioning/shape_tables"))
def test_shape_fixture(case):
    columns = case.call["video_audio_columns"]
    for values in case.outputs["video_audio"].tolist():
        row = dict(zip(columns, values, strict=True))
        latents = timing.latent_frames(int(row["px_frames"]))
        assert latents == row["lat_frames"]
        assert timing.pixel_frames(latents) == row["back_frames"]
        assert timing.audio_latents(int(row["px_frames"]), row["fps"]) == row["audio_frames"]
    for count, snapped in case.outputs["snap_down"].tolist():
        assert timing.snap_frames(int(count)) == snapped
    shortest, longest = case.call["seconds_bounds"]
    for seconds, fps, frames in case.outputs["seconds_to_frames"].tolist():
        low, high = round(shortest * fps), round(longest * fps)
        assert timing.frames_for_seconds(seconds, fps, low, high) == frames


@pytest.mark.parametrize("case", golden("audio/latent_lengths"))
def test_latents_of_video_fixture(case):
    """The reference makes nothing of a clip shorter than half a latent; we make one latent."""
    expected = {name: values.tolist() for name, values in case.outputs.items()}
    for i, (frames, fps) in enumerate(zip(case.inputs["frames"], case.call["fps"], strict=True)):
        latents = timing.audio_latents(int(frames), fps)
        mel = timing.mel_frames(latents)
        if expected["latent_frames"][i] == 0:
            assert (latents, mel) == (1, 1)
            continue
        assert latents == expected["latent_frames"][i]
        assert mel == expected["mel_frames"][i]
        assert mel * 240 == expected["samples_24k"][i]
        assert mel * 480 == expected["samples_48k"][i]


@pytest.mark.parametrize("case", golden("audio/latent_lengths"))
def test_latents_of_clip_fixture(case):
    """-1 marks clips that the reference refuses; we give those 1024 samples."""
    clips = zip(case.inputs["clip_sample_rate"], case.inputs["clip_samples"], strict=True)
    for i, (rate, samples) in enumerate(clips):
        resampled = timing.resampled_length(int(samples), int(rate), timing.AUDIO_RATE)
        assert resampled == case.outputs["clip_resampled"][i]
        is_refused = case.outputs["clip_mel_frames"][i] == -1
        assert is_refused == (resampled <= 512)
        length = timing.SHORTEST_WAVEFORM if is_refused else resampled
        mel = timing.encoded_mel_frames(length)
        latents = timing.encoded_audio_latents(mel)
        if is_refused:
            assert (mel, latents) == (7, 2)
        else:
            assert mel == case.outputs["clip_mel_frames"][i]
            assert latents == case.outputs["clip_latent_frames"][i]


frame_counts = st.integers(0, 300).map(lambda k: 8 * k + 1)
rates = st.floats(1, 120)


@given(frame_counts, rates)
def test_decoded_track_ends_just_before_the_picture(frames, fps):
    """Rounding to T latents costs at most half a latent (0.02 s), the causal start 0.03 s.

    So 0.04 T - 0.03 lies 0.01 to 0.05 s before the end of the picture. Only where T would round
    to 0 (one frame at 50 fps and more) does the one latent we keep (0.01 s) reach past the picture,
    by at most 0.01 - 1/120 s.
    """
    seconds = frames / fps
    track = timing.mel_frames(timing.audio_latents(frames, fps)) * timing.AUDIO_HOP
    missing = seconds - track / timing.AUDIO_RATE
    if seconds * timing.AUDIO_LATENTS_PER_SECOND > 0.5:
        assert 0.01 - 1e-9 <= missing <= 0.05 + 1e-9
    else:
        assert 1 / 120 - 0.01 - 1e-9 <= missing <= 0.01 + 1e-9


@given(frame_counts, rates)
def test_encoding_a_clip_as_long_as_the_picture_gives_enough_latents(frames, fps):
    """M = S // 160 + 1 mel frames make ceil(M / 4) latents: never fewer than the target."""
    target = timing.audio_latents(frames, fps)
    samples = max(timing.track_samples(frames, fps, timing.AUDIO_RATE), timing.SHORTEST_WAVEFORM)
    assert timing.encoded_audio_latents(timing.encoded_mel_frames(samples)) >= target


@given(st.integers(1, 5000), st.integers(1, 40))
def test_frames_round_trip(frames, factor):
    snapped = timing.snap_frames(frames, factor)
    assert frames - factor < snapped <= frames
    assert timing.pixel_frames(timing.latent_frames(snapped, factor), factor) == snapped
    assert timing.latent_frames(frames, factor) == timing.latent_frames(snapped, factor)


def test_identity_resampling_is_not_rounded():
    """float32 cannot count single samples beyond 2^24; without resampling nothing may be lost."""
    assert timing.resampled_length(2**24 + 1, 16000, 16000) == 2**24 + 1


@pytest.mark.parametrize(("frames", "nearest"), [(0, "1 or 9"), (120, "113 or 121"), (2, "1 or 9")])
def test_off_grid_frames_raise(frames, nearest):
    with pytest.raises(SizeError, match=f"8k \\+ 1, got {frames}; nearest: {nearest}"):
        timing.check_frames(frames)


def test_off_grid_sizes_raise():
    with pytest.raises(SizeError, match="height must be a multiple of 32, got 500; nearest: 480"):
        timing.check_size(500, 768)
    with pytest.raises(SizeError, match="width must be a multiple of 64, got 32; nearest: 64"):
        timing.check_size(512, 32, multiple=64)
