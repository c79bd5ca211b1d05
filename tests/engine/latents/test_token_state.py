from dataclasses import replace

import pytest
import torch
from goldens import golden

from aiprod_engine.latents.conditioning import (
    GeneratedSlots,
    KeyframeIndex,
    LatentIndex,
    apply_all,
)
from aiprod_engine.latents.patchify import unpatchify_video
from aiprod_engine.latents.positions import VideoGrid
from aiprod_engine.latents.references import ReferenceLatent
from aiprod_engine.latents.state import (
    audio_state,
    clear_conditioning,
    freeze,
    generated_keyframes,
    video_state,
)
from aiprod_engine.sampling.noise import noiser

FIELDS = ("latent", "clean_latent", "denoise_mask", "positions")


@pytest.mark.parametrize("case", golden("conditioning/state_initial"))
def test_initial_states(case):
    video = video_state(case.inputs["video"], case.call["fps"])
    audio = audio_state(case.inputs["audio"])
    for field in FIELDS:
        case.check(f"video.{field}", getattr(video, field))
        case.check(f"audio.{field}", getattr(audio, field))
    case.check("video.keyframes_mask", video.keyframes_mask)
    assert audio.keyframes_mask is None
    assert video.attention_mask is None
    assert (video.target_tokens, audio.target_tokens) == (24, 5)


def full_chain(inputs, fps, slots):
    """First frame, keyframe, anchor, generated slots, half-size reference: DFR's stage 2."""
    items = (
        LatentIndex(inputs["first_frame"], 0),
        KeyframeIndex(inputs["keyframe"], 5, 0.9),
        KeyframeIndex(inputs["anchor"], 24, 0.95),
        GeneratedSlots(tuple(slots), inputs["slot_seeds"]),
        ReferenceLatent(inputs["reference"], downscale=2),
    )
    base = inputs["base"]
    return apply_all(video_state(base, fps), items, VideoGrid.of(base, fps))


@pytest.mark.parametrize("case", golden("conditioning/state_full_chain"))
def test_full_chain(case):
    call = case.call
    state = full_chain(case.inputs, call["fps"], call["slots"])
    for field in ("denoise_mask", "keyframes_mask", "positions"):
        case.check(field, getattr(state, field))
    read = state.denoise_mask < 1  # the clean latent of generated tokens is never read
    case.check("clean_latent", torch.where(read, state.clean_latent, 0.0))
    case.check("noised", noiser(state, call["noise_scale"], case.inputs["noise"]).latent)
    assert state.slots.first == call["first_slot_token"]
    assert state.slots.count * state.slots.height * state.slots.width == call["slot_tokens"]


@pytest.mark.parametrize("case", golden("conditioning/clear_conditioning"))
def test_clear_conditioning(case):
    frames, height, width = case.call["grid"]
    tokens = case.inputs["tokens"]
    shapes = {
        "base": (frames, height, width),
        "first_frame": (1, height, width),
        "keyframe": (1, height, width),
        "anchor": (1, height, width),
        "slot_seeds": (2, height, width),
        "reference": (frames, 1, 1),
    }
    inputs = {k: torch.zeros(1, tokens.shape[2], *size) for k, size in shapes.items()}
    state = full_chain(inputs, 24.0, (8, 16))
    assert state.slots.first == case.call["first_slot_token"]
    state = replace(state, latent=tokens)

    case.check("generated_keyframes", generated_keyframes(state))
    cleared = clear_conditioning(state)
    case.check("video", unpatchify_video(cleared.latent, frames, height, width))
    assert cleared.denoise_mask.shape == (1, 24, 1)
    assert cleared.denoise_mask.min() == 1
    assert cleared.positions.shape == (1, 3, 24, 2)
    assert cleared.attention_mask is cleared.keyframes_mask is cleared.slots is None
    assert generated_keyframes(cleared) is None


def test_frozen_stream_has_mask_zero():
    latent = torch.randn(2, 2, 5, 3)
    state = audio_state(latent, frozen=True)
    assert state.frozen
    assert not state.denoise_mask.any()
    thawed = audio_state(latent)
    assert torch.equal(freeze(thawed).denoise_mask, state.denoise_mask)
    assert thawed.denoise_mask.all()
    assert not thawed.frozen


def test_state_keeps_model_dtype_and_float32_tables():
    state = video_state(torch.zeros(1, 4, 2, 2, 3, dtype=torch.bfloat16), 24.0)
    grid = VideoGrid(2, 2, 3, 24.0)
    state = KeyframeIndex(torch.randn(1, 4, 1, 2, 3), 5, 0.3).apply(state, grid)
    assert state.latent.dtype == state.clean_latent.dtype == torch.bfloat16
    tables = (state.denoise_mask, state.positions, state.keyframes_mask)
    assert {t.dtype for t in tables} == {torch.float32}
