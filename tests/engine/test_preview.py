"""The preview's map equals what the decoder shows, its cost is bounded, and it never raises."""

import logging
from types import SimpleNamespace

import pytest
import torch
from goldens import ROOT
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import aiprod_engine as engine
from aiprod_engine import preview
from aiprod_engine.errors import MismatchError
from aiprod_engine.latents.patchify import patchify_video
from aiprod_engine.latents.positions import VideoGrid
from aiprod_engine.media.pixels import to_uint8
from aiprod_engine.models.video_vae import VideoDecoder, VideoVAEConfig
from aiprod_engine.models.video_vae import blocks as vae_blocks
from aiprod_engine.models.video_vae import decoder as vae_decoder
from aiprod_engine.preview import (
    LatentRGB,
    LivePreview,
    contact_sheet,
    fit_latent_to_rgb,
    preview_frames,
)
from aiprod_engine.sampling.loops import StepInfo
from aiprod_engine.types import Streams

GRID = VideoGrid(frames=9, height=2, width=3, fps=24.0)


@pytest.fixture(params=["ltx2_20_tiny", "ltx2_23_tiny"])
def decoder(request):
    """Decoders with both padding modes: 2.0 reflects, 2.3 pads with zeros."""
    path = ROOT / "checkpoints" / f"{request.param}.safetensors"
    return engine.load("video_decoder", path, dtype=torch.float32)


@pytest.fixture
def linear_decoder(decoder, monkeypatch):
    """The same decoder without its only non-linear part."""
    for module in (vae_blocks, vae_decoder):
        monkeypatch.setattr(module, "activate", lambda x, *_: x)
    return decoder


def mean_colours(decoder, cells):
    """What the decoder makes of uniform latents (N, C)."""
    pixels = decoder(cells[:, :, None, None, None].expand(-1, -1, 1, 2, 2))
    return pixels.mean(dim=(2, 3, 4))


def test_map_equals_the_decode_where_it_was_fitted(decoder):
    rgb = fit_latent_to_rgb(decoder)
    channels = decoder.config.latent_channels
    assert rgb.weight.shape == (3, channels)
    points = torch.cat((torch.zeros(1, channels), torch.eye(channels)))
    expected = mean_colours(decoder, points)
    assert (expected.std(dim=0) > 0).all()
    # float32; decodes in other batches
    torch.testing.assert_close(rgb(points), expected, rtol=1e-4, atol=1e-5)


def test_map_of_a_linear_decoder_is_exact_everywhere(linear_decoder):
    rgb = fit_latent_to_rgb(linear_decoder)
    cells = torch.randn(5, linear_decoder.config.latent_channels)
    expected = mean_colours(linear_decoder, cells)
    # float32 through some ten convolutions, relative to the size of the colours
    torch.testing.assert_close(rgb(cells), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_preview_of_a_linear_decoder_shows_the_colours_of_the_clip(linear_decoder):
    """A clip of one colour: its preview equals its decode's mean."""
    rgb = fit_latent_to_rgb(linear_decoder)
    small = 0.2 / rgb.weight.norm(dim=1).max().clamp_min(1)  # keeps colours inside [-1, 1]
    cell = small * torch.randn(linear_decoder.config.latent_channels)
    tokens = cell.expand(1, GRID.frames * GRID.height * GRID.width, -1)
    shown = preview_frames(rgb, tokens, GRID)
    expected = to_uint8(mean_colours(linear_decoder, cell[None])[:, :, None, None, None])
    assert (shown.int() - expected.int()).abs().max() <= 1  # rounding


def test_fit_is_deterministic_and_leaves_the_decoder_alone(decoder):
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    first, second = fit_latent_to_rgb(decoder), fit_latent_to_rgb(decoder)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert all(torch.equal(t, before[name]) for name, t in decoder.state_dict().items())


def test_bfloat16_weights_give_nearly_the_same_map(decoder):
    exact = fit_latent_to_rgb(decoder)
    rounded = fit_latent_to_rgb(decoder.to(torch.bfloat16))
    assert rounded.weight.dtype == torch.float32
    # 8 bits of mantissa through some ten layers: a few per cent of the range of colours
    assert (rounded.bias - exact.bias).abs().max() < 0.05 * exact.bias.abs().max().clamp_min(1)


def test_fit_decodes_few_small_latents_and_can_be_cancelled(decoder):
    shapes, batches = [], []
    decoder.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    fit_latent_to_rgb(decoder, lambda: batches.append(len(shapes)))
    assert sum(shape[0] for shape in shapes) == decoder.config.latent_channels + 1
    assert max(shape[0] for shape in shapes) <= preview.PROBES_AT_ONCE
    assert {tuple(shape[2:]) for shape in shapes} == {(1, 2, 2)}
    assert batches == list(range(len(shapes)))  # one before each

    def cancel():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_latent_to_rgb(decoder, cancel)


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return out


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_activations_of_a_published_decoder_stay_small(padding):
    blocks = {
        "reflect": [*[["res_x", 5], ["compress_all", {"multiplier": 2, "residual": True}]] * 3,
                    ["res_x", 5]],
        "zeros": [["res_x", 4], ["compress_space", {"multiplier": 2}], ["res_x", 6],
                  ["compress_time", {"multiplier": 2}], ["res_x", 4],
                  ["compress_all", {"multiplier": 1}], ["res_x", 2],
                  ["compress_all", {"multiplier": 2}], ["res_x", 2]],
    }[padding]  # fmt: skip
    encoder_blocks = [["compress_all_res", {"multiplier": 2}]]
    section = {
        "encoder_blocks": encoder_blocks, "decoder_blocks": blocks, "spatial_padding_mode": padding,
    }  # fmt: skip
    with torch.device("meta"):
        network = VideoDecoder(VideoVAEConfig.from_metadata(section))
        batch = torch.zeros(preview.PROBES_AT_ONCE, network.config.latent_channels, 1, 2, 2)
        with LargestTensor() as largest:
            network(batch)
    assert largest.elements * 4 <= 16 * 2**20  # bytes in float32; three of them are alive


def colour_map(channels=4):
    """Channel 0 to 2 are red, green and blue; the rest is ignored."""
    return LatentRGB(torch.eye(3, channels), torch.zeros(3))


def test_frames_are_spread_over_the_clip_and_appended_tokens_are_cut():
    latent = torch.zeros(2, 4, GRID.frames, GRID.height, GRID.width)
    latent[0, 0] = (torch.arange(9.0) / 4 - 1)[:, None, None]  # red grows with time
    latent[0, 1, :, 1, 2] = 1.0  # the last corner is green
    latent[1] = 1.0
    tokens = torch.cat((patchify_video(latent), torch.ones(2, 7, 4)), dim=1)
    frames = preview_frames(colour_map(), tokens, GRID, count=3)
    assert frames.dtype == torch.uint8
    assert frames.shape == (3, GRID.height, GRID.width, 3)
    assert frames[:, 0, 0, 0].tolist() == [round(255 * k / 8) for k in (1, 4, 7)]
    assert frames[0, :, :, 1].tolist() == [[128, 128, 128], [128, 128, 255]]
    assert len(preview_frames(colour_map(), tokens, GRID, count=1)) == 1
    assert len(preview_frames(colour_map(), tokens, GRID, count=100)) == GRID.frames


def test_a_clip_of_one_frame_and_extreme_values():
    grid = VideoGrid(1, 2, 3, 24.0)
    tokens = torch.full((1, 6, 4), 1e4, dtype=torch.bfloat16)
    tokens[:, :, 1] = -1e4
    frames = preview_frames(colour_map(), tokens, grid)
    assert frames.unique(dim=2).tolist() == [[[[255, 0, 255]], [[255, 0, 255]]]]


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (64, 96)), (2, (32, 96)), (3, (64, 96)), (4, (64, 96))]
)
def test_contact_sheet_keeps_order_and_aspect(count, shape):
    frames = torch.stack([torch.full((2, 3, 3), 10 * (k + 1), dtype=torch.uint8)
                          for k in range(count)])  # fmt: skip
    sheet = contact_sheet(frames, side=96)
    assert sheet.shape == (*shape, 3)
    assert sheet.dtype == torch.uint8
    assert sheet.is_contiguous()
    columns = 1 if count == 1 else 2
    for k in range(count):
        row, column = divmod(k, columns)
        height, width = shape[0] // (-(-count // columns)), shape[1] // columns
        place = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
        assert place.unique().tolist() == [10 * (k + 1)]


def test_contact_sheet_of_a_huge_or_narrow_clip_stays_within_its_side():
    assert max(contact_sheet(torch.zeros(4, 400, 700, 3, dtype=torch.uint8), 512).shape) <= 512
    assert min(contact_sheet(torch.zeros(4, 1, 900, 3, dtype=torch.uint8), 64).shape) >= 1


def step(index=0, tokens=None):
    tokens = torch.zeros(1, GRID.frames * GRID.height * GRID.width, 4) if tokens is None else tokens
    return StepInfo(index, 30, 0.5, Streams(tokens))


class Clock:
    """Time that passes by `per_call` whenever somebody looks."""

    def __init__(self, per_call=0.0):
        self.now, self.per_call = 0.0, per_call

    def __call__(self):
        self.now += self.per_call
        return self.now


def test_live_preview_shows_every_second_step():
    live = LivePreview(colour_map(), GRID, side=64, clock=Clock())
    shown = [live(step(index)) is not None for index in range(6)]
    assert shown == [True, False] * 3
    assert live(step()).shape == (42, 64, 3)


def test_pictures_take_at_most_their_share_of_the_time():
    clock = Clock(per_call=0.5)  # a picture takes half a second
    live = LivePreview(colour_map(), GRID, clock=clock)
    shown = []
    for index in range(0, 200, 2):
        clock.now += 1.0
        shown.append(live(step(index)) is not None)
    assert shown[0]
    spent = 0.5 * sum(shown)
    assert 1 < sum(shown) < 20
    assert spent <= preview.LARGEST_SHARE * clock.now + 0.5


@pytest.mark.parametrize("frames", [9, 33, 1025])
def test_a_picture_maps_few_cells_however_long_the_clip(frames):
    """Cost by counted work, not by time: four frames' cells at every second step, else none."""
    grid, mapped = VideoGrid(frames, 2, 3, 24.0), []

    class Counting(LatentRGB):
        def __call__(self, cells):
            mapped.append(cells.shape[:-1].numel())
            return super().__call__(cells)

    counting = Counting(torch.eye(3, 4), torch.zeros(3))
    live = LivePreview(counting, grid, clock=Clock())
    tokens = torch.zeros(1, frames * 2 * 3, 4)
    done = []
    for index in range(4):
        live(step(index, tokens))
        done.append(sum(mapped))
    one = preview.FRAMES * 2 * 3
    assert done == [one, one, 2 * one, 2 * one]


def test_a_stream_without_picture_is_silent():
    live = LivePreview(colour_map(), GRID)
    assert live(StepInfo(0, 3, 0.5, Streams(None, torch.zeros(1, 2, 4)))) is None


@pytest.mark.parametrize(
    "tokens", [torch.zeros(1, 54, 5), torch.zeros(1, 3, 4), SimpleNamespace(), torch.zeros(0)]
)
def test_an_error_is_logged_once_and_never_raised(tokens, caplog):
    live = LivePreview(colour_map(), GRID, clock=Clock())
    with caplog.at_level(logging.WARNING):
        assert [live(step(index, tokens)) for index in range(4)] == [None] * 4
        assert live(step(4)) is None  # stays silent
    assert len(caplog.records) == 1


def test_latents_of_another_width_are_refused():
    with pytest.raises(MismatchError, match="4 latent channels"):
        colour_map()(torch.zeros(2, 5))
