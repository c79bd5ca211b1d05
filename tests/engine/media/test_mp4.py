import io
import math
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from aiprod_engine.errors import MismatchError, SizeError
from aiprod_engine.media.clips import probe, read_frames, read_sound
from aiprod_engine.media.mp4 import Sound, write_mp4

RED, BLUE = (200, 60, 20), (20, 50, 190)


def flat(colour, frames=8, height=48, width=64):
    return torch.tensor(colour, dtype=torch.uint8).expand(frames, height, width, 3)


def tone(seconds, rate=48_000, channels=2, hertz=440.0):
    wave = 0.5 * torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * rate)) / rate)
    return Sound(wave.expand(channels, -1), rate)


def test_picture_and_sound_come_back(tmp_path):
    path = tmp_path / "clip.mp4"
    sound = tone(1.0)
    assert write_mp4(path, [flat(RED, 9), flat(BLUE, 16)], 25.0, sound) == 25
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]

    info = probe(path)
    assert (info.frames, info.height, info.width, info.fps) == (25, 48, 64, 25.0)
    assert info.has_sound
    frames = list(read_frames(path))
    assert len(frames) == 25
    for frame, colour in (
        (frames[0], RED),
        (frames[8], RED),
        (frames[9], BLUE),
        (frames[24], BLUE),
    ):
        assert (frame.int() - torch.tensor(colour)).abs().max() <= 6
    heard = read_sound(path)
    assert heard.rate == 48_000
    assert heard.waveform.shape[0] == 2
    assert 48_000 <= heard.waveform.shape[1] < 48_000 + 2048
    quiet = heard.waveform[:, 4096:40_000] - sound.waveform[:, 4096:40_000]
    assert quiet.square().mean().sqrt() < 0.01


def test_stream_formats_and_colour_tags(tmp_path):
    path = tmp_path / "clip.mp4"
    write_mp4(path, [flat(RED)], 24.0, tone(0.2), metadata={"prompt": "a fox"})
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt) == ("h264", "yuv420p")
        assert (audio.codec_context.name, audio.layout.name) == ("aac", "stereo")
        assert (video.codec_context.colorspace, video.codec_context.color_primaries) == (1, 1)
        assert container.metadata["prompt"] == "a fox"


@pytest.mark.parametrize(
    ("fps", "rate"), [(24.0, 24), (24000 / 1001, Fraction(24000, 1001)), (23.976, 23.976), (50, 50)]
)
def test_frame_rate_and_duration(fps, rate):
    file = io.BytesIO()
    write_mp4(file, [flat(RED, 12)], fps)
    assert probe(file).fps == pytest.approx(float(rate), rel=1e-9)
    assert read_sound(file) is None
    file.seek(0)
    with av.open(file) as container:
        stream = container.streams.video[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(12 / fps, rel=1e-3)


def test_sound_is_written_in_step_with_the_picture(tmp_path):
    """Players need both streams near each other in the file."""
    path = tmp_path / "clip.mp4"
    noise = torch.randint(0, 256, (24, 48, 64, 3), dtype=torch.uint8)
    write_mp4(path, (noise for _ in range(6)), 24.0, tone(6.0))
    with av.open(str(path)) as container:
        order = [(p.pos, p.stream.type) for p in container.demux() if p.size]
    kinds = [kind for _, kind in sorted(order)]
    middle = len(kinds) // 2
    assert "audio" in kinds[:middle]
    assert "video" in kinds[middle:]


def test_chunks_are_not_kept():
    given = []

    def chunks():
        for _ in range(6):
            assert sum(ref() is not None for ref in given) <= 1  # only the one just encoded
            chunk = flat(RED).clone()
            given.append(weakref.ref(chunk))
            yield chunk
            del chunk

    assert write_mp4(io.BytesIO(), chunks(), 24.0) == 48


def test_failure_leaves_no_file(tmp_path):
    def broken():
        yield flat(RED)
        raise RuntimeError("decoder")

    with pytest.raises(RuntimeError, match="decoder"):
        write_mp4(tmp_path / "clip.mp4", broken(), 24.0)
    with pytest.raises(SizeError, match="at least one frame"):
        write_mp4(tmp_path / "clip.mp4", [], 24.0)
    with pytest.raises(SizeError, match="even sides"):
        write_mp4(tmp_path / "clip.mp4", [flat(RED, 2, 47, 64)], 24.0)
    with pytest.raises(SizeError, match="channels"):
        write_mp4(tmp_path / "clip.mp4", [flat(RED)], 24.0, tone(0.1, channels=6))
    assert not list(tmp_path.iterdir())


def test_mono_sound_at_another_rate():
    file = io.BytesIO()
    write_mp4(file, [flat(RED, 24)], 24.0, tone(1.0, rate=24_000, channels=1))
    heard = read_sound(file, start=0.25, seconds=0.5)
    assert heard.rate == 24_000
    assert heard.waveform.shape == (1, 12_000)
    expected = tone(1.0, 24_000, 1).waveform[:, 6000:18_000]
    assert (heard.waveform - expected).square().mean().sqrt() < 0.01


def test_part_of_the_frames():
    ramp = torch.arange(0, 240, 10, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 32, 32, 3)
    file = io.BytesIO()
    write_mp4(file, [ramp], 24.0, crf=1)
    levels = [float(f.float().mean()) for f in read_frames(file, start=5, count=3)]
    assert levels == pytest.approx([50, 60, 70], abs=3)
    assert len(list(read_frames(file, start=20, count=99))) == 4


def wav(samples, codec, layout="stereo", rate=16_000, kind="wav", start=0):
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples, format=stream.format.name, layout=layout)
        frame.sample_rate, frame.pts = rate, start
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file


@pytest.mark.parametrize(
    ("codec", "dtype", "zero", "unit"),
    [
        ("pcm_u8", np.uint8, 128, 128),
        ("pcm_s16le", np.int16, 0, 2**15),
        ("pcm_s32le", np.int32, 0, 2**31),
        ("pcm_f32le", np.float32, 0, 1),
    ],
)
def test_sample_formats_are_scaled_exactly(codec, dtype, zero, unit):
    wave = np.array([[0.5, -0.25, 0, -1.0, 0.125, 0.75]])
    file = wav((wave * unit + zero).astype(dtype), codec)  # packed: left, right, left, ...
    expected = torch.from_numpy(wave.reshape(3, 2).T).float()
    torch.testing.assert_close(read_sound(file).waveform, expected, rtol=0, atol=0)


def test_late_track_gets_leading_silence():
    samples = np.full((1, 2000), 2**14, dtype=np.int16)
    file = wav(samples, "pcm_s16le", kind="matroska", start=1600)
    heard = read_sound(file, seconds=0.15)
    assert heard.waveform.shape == (2, 2400)
    assert not heard.waveform[:, :1600].any()
    assert (heard.waveform[:, 1600:] == 0.5).all()
    assert read_sound(file, start=0.1).waveform.shape == (2, 1000)


def test_surround_is_mixed_to_stereo():
    samples = np.zeros((1, 6 * 64), dtype=np.int16)
    assert read_sound(wav(samples, "pcm_s16le", "5.1")).waveform.shape == (2, 64)


def test_phone_videos_are_turned_upright():
    file = io.BytesIO()
    half = flat(RED, 3).clone()
    half[:, :, 32:] = torch.tensor(BLUE, dtype=torch.uint8)  # left red, right blue
    write_mp4(file, [half], 24.0)
    data = bytearray(file.getvalue())
    matrix = data.index(b"tkhd") + 44
    clockwise = [0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30]  # quarter turn
    data[matrix : matrix + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in clockwise)
    turned = io.BytesIO(bytes(data))
    info = probe(turned)
    assert (info.height, info.width) == (64, 48)
    frame = next(read_frames(turned)).int()
    assert (frame[5, 20] - torch.tensor(RED)).abs().max() < 10  # left has become top
    assert (frame[60, 20] - torch.tensor(BLUE)).abs().max() < 10


def test_file_without_picture():
    file = wav(np.zeros((1, 64), dtype=np.int16), "pcm_s16le")
    with pytest.raises(MismatchError, match="no video stream"):
        probe(file)
