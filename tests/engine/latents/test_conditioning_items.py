from dataclasses import fields

import pytest
import torch
from goldens import golden

from aiprod_engine.errors import SizeError
from aiprod_engine.latents.conditioning import (
    GeneratedSlots,
    GuideLatent,
    KeyframeIndex,
    LatentIndex,
    clip_start,
    image_item,
)
from aiprod_engine.latents.positions import VideoGrid
from aiprod_engine.latents.references import (
    ReferenceAudio,
    ReferenceLatent,
)
from aiprod_engine.latents.regions import MaskItem, TemporalRegion
from aiprod_engine.latents.state import audio_state, video_state
from aiprod_engine.sampling.noise import noiser

GRID = VideoGrid(4, 2, 3, 24.0)  # the target of every fixture that gives no initial latent


def empty_state(batch=1):
    return video_state(GRID.zeros(batch, 4), GRID.fps)


def check_state(case, state):
    for field in ("clean_latent", "denoise_mask", "positions"):
        if field in case.outputs:
            case.check(field, getattr(state, field))


@pytest.mark.parametrize("case", golden("conditioning/cond_latent_index_*"))
def test_latent_index(case):
    call, initial = case.call, case.inputs["initial"]
    before = video_state(initial, call["fps"])
    item = LatentIndex(case.inputs["latent"], call["latent_index"], call["strength"])
    state = item.apply(before, VideoGrid.of(initial, call["fps"]))
    check_state(case, state)
    assert torch.equal(state.latent, before.latent)
    for name, scale in zip(("noised.1", "noised.s2"), call["noise_scales"], strict=True):
        case.check(name, noiser(state, scale, case.inputs["noise"]).latent)


@pytest.mark.parametrize("case", golden("conditioning/cond_keyframe_*"))
def test_keyframe(case):
    call = case.call
    item = KeyframeIndex(
        case.inputs["keyframes"], call["frame_index"], call["strength"], call["num_pixel_frames"]
    )
    state = item.apply(empty_state(), GRID)
    check_state(case, state)
    case.check("noised.1", noiser(state, 1.0, case.inputs["noise"]).latent)
    assert not state.latent[:, 24:].any()


@pytest.mark.parametrize(
    "case",
    golden(
        "conditioning/cond_reference",
        "conditioning/cond_reference_downscaled",
        "conditioning/cond_reference_temporal",
    ),
)
def test_reference(case):
    call = case.call
    item = ReferenceLatent(
        case.inputs["reference"],
        call["strength"],
        call["downscale_factor"],
        call["temporal_scale_factor"],
    )
    check_state(case, item.apply(empty_state(), GRID))


@pytest.mark.parametrize("case", golden("conditioning/cond_reference_audio*"))
def test_reference_audio(case):
    call, reference = case.call, case.inputs["reference"]
    target = reference.new_zeros(1, reference.shape[1], call["target_frames"], reference.shape[3])
    item = ReferenceAudio(reference, call["strength"], call["negative_positions"])
    state = item.apply(audio_state(target))
    check_state(case, state)
    assert state.keyframes_mask is None


def test_training_style_voice_starts_at_zero():
    latent = torch.randn(1, 2, 4, 3)
    state = ReferenceAudio(latent, before_target=False).apply(audio_state(torch.zeros(1, 2, 5, 3)))
    assert torch.equal(state.positions[:, :, 5:], state.positions[:, :, :4])


@pytest.mark.parametrize("case", golden("conditioning/cond_mask"))
def test_mask_item(case):
    inputs = case.inputs
    item = MaskItem(inputs["latent"], inputs["mask"], case.call["strength"])
    check_state(case, item.apply(video_state(inputs["initial"], 24.0)))


def test_mask_item_combines_with_earlier_masks_and_spares_appended_tokens():
    mask = torch.zeros(1, 4, 2, 3)
    mask[:, 2:] = 1
    state = LatentIndex(torch.randn(1, 4, 1, 2, 3), 0, 0.8).apply(empty_state(), GRID)
    state = KeyframeIndex(torch.randn(1, 4, 1, 2, 3), 9).apply(state, GRID)
    after = MaskItem(torch.randn(1, 4, 4, 2, 3), mask, 0.25).apply(state)
    expected = torch.tensor([0.2, 1, 0.75, 0.75]).repeat_interleave(6)
    torch.testing.assert_close(after.denoise_mask[0, :24, 0], expected)
    assert torch.equal(after.clean_latent[:, 24:], state.clean_latent[:, 24:])
    assert torch.equal(after.denoise_mask[:, 24:], state.denoise_mask[:, 24:])


@pytest.mark.parametrize("case", golden("conditioning/cond_temporal_region"))
def test_temporal_region(case):
    call = case.call
    grid = VideoGrid(*call["video_grid"], call["fps"])
    video = video_state(grid.zeros(1, 4), call["fps"])
    audio = audio_state(torch.zeros(1, 2, call["audio_frames"], 3))
    for i, (start, end) in enumerate(call["regions_seconds"]):
        region = TemporalRegion(start, end)
        case.check(f"video_mask.{i}", region.apply(video, grid).denoise_mask)
        case.check(f"audio_mask.{i}", region.apply(audio).denoise_mask)


def test_slots_without_seeds_start_empty():
    state = GeneratedSlots((3, 20)).apply(empty_state(), GRID)
    assert state.latent.shape == (1, 36, 4)
    assert not state.latent[:, 24:].any()
    assert state.denoise_mask[:, 24:].all()
    assert state.keyframes_mask[:, 24:].all()
    seconds = state.positions[0, 0, 24:].unique(dim=0) * 24
    torch.testing.assert_close(seconds, torch.tensor([[3.0, 4.0], [20.0, 21.0]]))


@pytest.mark.parametrize(
    ("index", "start", "end"), [(-3, -24, -8), (0, 0, 9), (1, 1, 17), (2, 9, 25)]
)
def test_guides_may_lie_before_the_clip(index, start, end):
    state = GuideLatent(torch.randn(1, 4, 2, 2, 3), index, 0.5).apply(empty_state(), GRID)
    seconds = state.positions[0, 0, 24:] * 24
    torch.testing.assert_close(seconds.aminmax().min, torch.tensor(float(start)))
    torch.testing.assert_close(seconds.aminmax().max, torch.tensor(float(end)))
    assert (state.denoise_mask[:, 24:] == 0.5).all()


def all_items():
    still, clip = torch.randn(1, 4, 1, 2, 3), torch.randn(1, 4, 2, 2, 3)
    return [
        LatentIndex(clip, 1, 0.3),
        KeyframeIndex(still, 7, 0.4),
        GuideLatent(clip, -4, 0.5),
        ReferenceLatent(torch.randn(1, 4, 4, 1, 1), 0.6, 2, 2),
        MaskItem(torch.randn(1, 4, 4, 2, 3), torch.rand(1, 4, 2, 3).round(), 0.5),
        TemporalRegion(0.2, 0.7),
        GeneratedSlots((2, 5), clip),
    ]


@pytest.mark.parametrize("item", all_items(), ids=lambda i: type(i).__name__)
def test_items_do_not_mutate_and_serve_every_sample(item):
    state = empty_state(batch=2)
    tensors = {
        f.name: getattr(state, f.name).clone()
        for f in fields(state)
        if isinstance(getattr(state, f.name), torch.Tensor)
    }
    both = item.apply(state, GRID)
    for name, before in tensors.items():
        assert torch.equal(getattr(state, name), before)
    one = item.apply(empty_state(), GRID)
    for name in tensors:
        assert torch.equal(getattr(both, name), getattr(one, name).expand_as(getattr(both, name)))


STILL = torch.zeros(1, 4, 1, 2, 3)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (LatentIndex(torch.zeros(1, 4, 1, 3, 2)), "encode it at the target's size"),
        (LatentIndex(STILL, 4), "do not fit"),
        (LatentIndex(STILL, -1), "do not fit"),
        (LatentIndex(STILL, 0, 1.5), "strength"),
        (KeyframeIndex(STILL, 25), "frame index"),
        (KeyframeIndex(STILL, -8), "frame index"),
        (KeyframeIndex(STILL, 8, -0.1), "strength"),
        (ReferenceLatent(STILL, 2.0), "strength"),
        (GeneratedSlots((8, 8)), "increase strictly"),
        (GeneratedSlots((8, 25)), "frame index"),
        (GeneratedSlots((8, 16), STILL), "slot seeds"),
        (MaskItem(STILL, torch.zeros(1, 1, 2, 3)), "cover the target"),
    ],
)
def test_bad_items_raise(item, message):
    with pytest.raises(SizeError, match=message):
        item.apply(empty_state(), GRID)


def test_only_one_slot_item():
    state = GeneratedSlots((8,)).apply(empty_state(), GRID)
    with pytest.raises(SizeError, match="one list"):
        GeneratedSlots((16,)).apply(state, GRID)


def test_image_policies():
    assert image_item(STILL, 0, 1.0) == LatentIndex(STILL, 0, 1.0)
    assert image_item(STILL, 9, 0.8) == KeyframeIndex(STILL, 9, 0.8, 1)
    assert image_item(STILL, 0, 1.0, "guiding") == KeyframeIndex(STILL, 0, 1.0, 1)
    assert image_item(STILL, 2, 1.0, "replacing") == LatentIndex(STILL, 2, 1.0)


def test_clips_move_to_the_grid():
    assert [clip_start(k) for k in (0, 1, 8, 9, 16, 17)] == [0, 1, 1, 9, 9, 17]
