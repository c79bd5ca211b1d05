"""Streaming is exact: rounding apart, it gives what the whole clip gives, in bounded memory."""

import gc
import weakref

import pytest
import torch
from goldens import golden
from torch.utils._python_dispatch import TorchDispatchMode

from aiprod_engine.errors import SizeError
from aiprod_engine.models.video_vae import VideoVAEConfig, stream_decode, stream_encode
from aiprod_engine.models.video_vae.blocks import Conv
from aiprod_engine.models.video_vae.streaming import (
    FRAME,
    STRIPES,
    Piece,
    look_ahead,
    pieces,
    resume_point,
)

DECODERS = golden(
    "video_vae/decoder_20",
    "video_vae/decoder_23",
    "video_vae/decoder_causal_flag",
    "video_vae/decoder_timestep_conditioned",
)
ENCODERS = golden("video_vae/encoder_20", "video_vae/encoder_23", "video_vae/encoder_25")
BLOCKS = [Piece(frames) for frames in (2, 5, 8, 16, 72)]  # 16 and 72: 2 and 9 latents at once
ROWS = [Piece(rows=rows) for rows in (1, 3, 5)]
BOTH = [Piece(8, 3)]


def random_latent(decoder, frames, dtype=torch.float32):
    shape = (1, decoder.config.latent_channels, frames, 2, 3)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


def streamed(decoder, latent, piece=FRAME):
    return torch.stack(list(stream_decode(decoder, latent.unbind(2), piece)), dim=2)


def encoded(encoder, clip, piece=FRAME):
    return torch.stack(list(stream_encode(encoder, clip.unbind(2), piece)), dim=2)


def name(piece):
    return f"{piece.frames}-{piece.rows or 'all'}"


@pytest.mark.parametrize("case", DECODERS)
def test_streamed_decode_equals_the_whole_in_float64(case, build):
    """A wrong frame would show far above 1e-10, rounding stays far below."""
    decoder = build("decoder", case.config["vae"], case.weights).double()
    for frames in (1, 2, 3, 9):
        latent = random_latent(decoder, frames, torch.float64)
        actual = streamed(decoder, latent)
        torch.testing.assert_close(actual, decoder(latent), rtol=0, atol=1e-10)


@pytest.mark.parametrize("piece", BLOCKS + ROWS + BOTH, ids=name)
@pytest.mark.parametrize("case", DECODERS)
def test_decode_in_pieces_equals_the_whole_in_float64(case, piece, build):
    decoder = build("decoder", case.config["vae"], case.weights).double()
    for frames in (1, 2, 3, 9):
        latent = random_latent(decoder, frames, torch.float64)
        actual = streamed(decoder, latent, piece)
        torch.testing.assert_close(actual, decoder(latent), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", golden("video_vae/decoder_20", "video_vae/decoder_23"))
def test_streamed_decode_matches_reference(case, build):
    """float32 rounding: the two channels of `decoder_23` amplify it in the last pixel norm."""
    decoder = build("decoder", case.config["vae"], case.weights)
    atol = 1e-3 if case.name.endswith("decoder_23") else 5e-5
    actual = streamed(decoder, case.inputs["latent"])
    torch.testing.assert_close(actual, case.outputs["video"], rtol=0, atol=atol)


@pytest.mark.parametrize("case", ENCODERS)
def test_streamed_encode_equals_the_whole_in_float64(case, build):
    encoder = build("encoder", case.config["vae"], case.weights).double()
    video = torch.rand(2, 3, 25, 64, 32, dtype=torch.float64) * 2 - 1
    for frames in (1, 9, 14, 25):
        clip = video[:, :, :frames]
        torch.testing.assert_close(encoded(encoder, clip), encoder(clip), rtol=0, atol=1e-10)


@pytest.mark.parametrize("piece", BLOCKS + ROWS + BOTH, ids=name)
@pytest.mark.parametrize("case", ENCODERS)
def test_encode_in_pieces_equals_the_whole_in_float64(case, piece, build):
    encoder = build("encoder", case.config["vae"], case.weights).double()
    video = torch.rand(1, 3, 25, 64, 32, dtype=torch.float64) * 2 - 1
    for frames in (1, 14, 25):
        clip = video[:, :, :frames]
        torch.testing.assert_close(encoded(encoder, clip, piece), encoder(clip), rtol=0, atol=1e-10)


@pytest.mark.parametrize("padding", ["zeros", "reflect", "replicate"])
def test_stripes_of_a_published_layout_border_the_picture_only(padding, published, skeleton):
    """Both layouts with every padding mode; tall enough for stripes without any picture edge."""
    for version in ("2.0", "2.3"):
        section = published(version) | {"decoder_base_channels": 8, "latent_channels": 4}
        decoder = skeleton("decoder", section | {"spatial_padding_mode": padding})
        state = {k: torch.randn(v.shape) * 0.05 for k, v in decoder.state_dict().items()}
        decoder.load_state_dict(state, assign=True)
        decoder.double().requires_grad_(False)
        latent = random_latent(decoder, 2, torch.float64)
        actual = streamed(decoder, latent, Piece(rows=5))
        torch.testing.assert_close(actual, decoder(latent), rtol=0, atol=1e-10)


@pytest.mark.parametrize("piece", [FRAME, Piece(rows=3)], ids=name)
@pytest.mark.parametrize("case", golden("video_vae/decoder_20", "video_vae/decoder_23"))
def test_bits_do_not_depend_on_how_latents_arrive_or_on_what_follows(case, piece, build):
    decoder = build("decoder", case.config["vae"], case.weights)
    reach = look_ahead(decoder.config)
    latent = random_latent(decoder, 12)
    whole = streamed(decoder, latent, piece)
    for size in (1, 5):
        blocks = [part.clone() for part in latent.split(size, dim=2)]
        frames = [frame for block in blocks for frame in block.unbind(2)]
        assert torch.equal(torch.stack(list(stream_decode(decoder, frames, piece)), dim=2), whole)
    shorter = streamed(decoder, latent[:, :, :11], piece)
    kept = shorter.shape[2] - reach
    assert kept > 0
    assert torch.equal(shorter[:, :, :kept], whole[:, :, :kept])


@pytest.mark.parametrize("case", DECODERS)
def test_a_restarted_stream_goes_on_bit_for_bit(case, build):
    decoder = build("decoder", case.config["vae"], case.weights)
    latent = random_latent(decoder, 24)
    whole = streamed(decoder, latent)
    starts = set()
    for emitted in (0, 5, 100, 183):
        start, discard = resume_point(decoder.config, emitted)
        starts.add(start)
        rest = streamed(decoder, latent[:, :, start:])[:, :, discard:]
        assert torch.equal(rest, whole[:, :, emitted:])
    assert max(starts) > 0


@pytest.mark.parametrize("case", golden("video_vae/decoder_20", "video_vae/decoder_23"))
def test_emission_schedule(case, build):
    """After latent t the frames 0 .. 8t - R are out, the others come at the end."""
    decoder = build("decoder", case.config["vae"], case.weights)
    reach = look_ahead(decoder.config)
    pushed = []

    def latents():
        for frame in random_latent(decoder, 12).unbind(2):
            pushed.append(frame)
            yield frame
        pushed.append("end")

    schedule = [len(pushed) - 1 for _ in stream_decode(decoder, latents())]
    on_time = [8 * t - reach + 1 for t in range(12)]  # frames that are out after latent t
    for t, frames in enumerate(on_time):
        assert sum(pushes <= t for pushes in schedule) == max(0, frames)
    assert len(schedule) == 8 * 11 + 1


@pytest.mark.parametrize(("version", "frames"), [("2.0", 173), ("2.3", 108)])
def test_look_ahead_of_the_published_decoders(version, frames, published):
    assert look_ahead(VideoVAEConfig.from_metadata(published(version))) == frames


@pytest.mark.parametrize("case", golden("video_vae/encoder_20"))
def test_a_latent_appears_with_its_last_frame(case, build):
    encoder = build("encoder", case.config["vae"], case.weights)
    pulled = []

    def frames():
        for frame in torch.zeros(20, 1, 3, 32, 32):
            pulled.append(frame)
            yield frame

    assert [len(pulled) for _ in stream_encode(encoder, frames())] == [1, 9, 17]


class LiveElements(TorchDispatchMode):
    """Counts the elements of all storages that are alive and were made under it."""

    def __init__(self, known):
        super().__init__()
        self.known = [tensor.untyped_storage() for tensor in known]  # weights do not count
        self.sizes = {storage._cdata: 0 for storage in self.known}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), tensor.element_size())
        return out

    def _count(self, storage, width):
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes() // width
            self.live += self.sizes[key]
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, key)

    def _release(self, key):
        self.live -= self.sizes.pop(key)


def peak_of(module, run):
    gc.collect()
    counter = LiveElements([*module.parameters(), *module.buffers()])
    with counter:
        for _ in run():
            pass
        del _
    assert counter.live == 0
    return counter.peak


def decode_peak(decoder, latents, height, width, piece=FRAME):
    shape = (1, decoder.config.latent_channels, height, width)
    device = decoder.conv_in.conv.weight.device
    frames = (torch.zeros(shape, device=device) for _ in latents)
    return peak_of(decoder, lambda: stream_decode(decoder, frames, piece))


@pytest.mark.parametrize("case", golden("video_vae/decoder_20", "video_vae/decoder_23"))
def test_peak_memory_does_not_grow_with_the_clip(case, build):
    decoder = build("decoder", case.config["vae"], case.weights)
    assert decode_peak(decoder, range(11), 2, 3) == decode_peak(decoder, range(14), 2, 3)


# Elements per pixel of one frame, with two frames kept per convolution. Of blocks the
# specification knows figures with more state, 746 and 858 for eight frames.
PEAKS = {
    "2.0": {FRAME: 405, Piece(8): 566},
    "2.3": {FRAME: 495, Piece(8): 650},
}


@pytest.mark.parametrize("piece", PEAKS["2.0"], ids=name)
@pytest.mark.parametrize("version", PEAKS)
def test_peak_memory_of_the_published_depths(version, piece, published, skeleton):
    """At a sixteenth of the width; the picture, which does not shrink, counts thrice at most."""
    elements = PEAKS[version][piece]
    section = published(version) | {"latent_channels": 8, "decoder_base_channels": 8}
    decoder = skeleton("decoder", section).requires_grad_(False)
    peak = decode_peak(decoder, range(look_ahead(decoder.config) // 8 + 3), 4, 6, piece)
    assert peak <= (elements / 16 + 3 * 3 * piece.frames) * (32 * 4) * (32 * 6)


@pytest.mark.parametrize("case", golden("video_vae/decoder_20"))
def test_closing_early_releases_all_state(case, build):
    decoder = build("decoder", case.config["vae"], case.weights)
    counter = LiveElements([*decoder.parameters(), *decoder.buffers()])
    with counter:
        frames = stream_decode(decoder, (torch.zeros(1, 4, 2, 2) for _ in range(14)))
        next(frames)
        assert counter.live > 0
        frames.close()
        assert counter.live == 0


@pytest.mark.parametrize("case", golden("video_vae/decoder_20"))
def test_streams_do_not_share_state(case, build):
    decoder = build("decoder", case.config["vae"], case.weights)
    latent = random_latent(decoder, 3)
    alone = streamed(decoder, latent)
    pairs = zip(
        stream_decode(decoder, latent.unbind(2)),
        stream_decode(decoder, latent.neg().unbind(2)),
        strict=True,
    )
    assert torch.equal(torch.stack([first for first, _ in pairs], dim=2), alone)


@pytest.mark.parametrize("case", golden("video_vae/decoder_20"))
def test_sizes_are_checked_while_streaming(case, build):
    decoder = build("decoder", case.config["vae"], case.weights)
    with pytest.raises(SizeError):
        list(stream_decode(decoder, [torch.zeros(1, 4, 1, 2)]))
    assert list(stream_decode(decoder, [])) == []


@pytest.mark.parametrize("case", golden("video_vae/decoder_20", "video_vae/decoder_23"))
def test_eight_frames_at_a_time_call_every_convolution_once_a_latent(case, build, monkeypatch):
    decoder = build("decoder", case.config["vae"], case.weights)
    window, calls = Conv.window, []

    def counted(self, *args):
        calls.append(self)
        return window(self, *args)

    monkeypatch.setattr(Conv, "window", counted)
    first = look_ahead(decoder.config) // 8 + 2  # every convolution has begun

    def latents():
        for t, latent in enumerate(random_latent(decoder, first + 2).unbind(2)):
            if t == first:
                calls.clear()
            yield latent
        convolutions = [module for module in decoder.modules() if isinstance(module, Conv)]
        assert sorted(map(id, calls)) == sorted(map(id, convolutions * 2))

    for _ in stream_decode(decoder, latents(), Piece(8)):
        pass


def test_pieces_of_a_device():
    assert pieces("cpu", 32) == (FRAME,)
    assert pieces("cpu", 33) == (FRAME, STRIPES)
    assert pieces("cuda", 33) == (Piece(8), Piece(4), Piece(2), FRAME, STRIPES)
    named = [piece.name for piece in pieces("cuda", 33)]
    assert named[0] == "8 frames at a time"
    assert named[-2:] == ["frame by frame", "frame by frame, 32 rows at a time"]
