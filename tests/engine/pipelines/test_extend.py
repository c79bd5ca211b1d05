"""A clip that goes on: lengths, what is carried over, what stays as it was."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiprod_engine import timing
from aiprod_engine.errors import MismatchError, SizeError
from aiprod_engine.latents.positions import video_positions
from aiprod_engine.latents.state import video_state
from aiprod_engine.pipelines.extend import Extension, carried, carried_audio, extend, joined
from aiprod_engine.pipelines.run import Run, Settings
from aiprod_engine.pipelines.stage import grid_of, initial_states
from aiprod_engine.types import AVLatent

SETTINGS = Settings(sigmas=torch.tensor([1.0, 0.6, 0.0]))


def clip_of(frames=25, fps=24.0, channels=8):
    generator = torch.Generator().manual_seed(4)
    video = torch.randn(1, channels, timing.latent_frames(frames), 2, 3, generator=generator)
    audio = torch.randn(1, 1, timing.audio_latents(frames, fps), 16, generator=generator)
    return AVLatent(video, audio, frames, 64, 96, fps)


def test_the_extended_clip_is_longer_and_begins_as_before(tiny, contexts):
    clip = clip_of()
    longer = extend(Run(tiny), clip, contexts, Extension(16, 2), SETTINGS)
    assert longer.frames == 41
    assert longer.video.shape == (1, 8, 6, 2, 3)
    assert longer.audio.shape == (1, 1, timing.audio_latents(41, 24.0), 16)
    assert torch.equal(longer.video[:, :, :3], clip.video[:, :, :3])
    assert torch.equal(longer.audio[:, :, :26], clip.audio)
    assert not torch.allclose(longer.video[:, :, 3:4], clip.video[:, :, 3:])
    assert longer.audio[:, :, 26:].abs().min() > 0


def test_extending_follows_its_seed(tiny, contexts):
    one, same, other = (
        extend(Run(tiny, seed), clip_of(), contexts, Extension(8, 2), SETTINGS).video
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_the_guide_lies_at_the_beginning_of_the_new_clip(transformer):
    clip = clip_of()
    start = carried(clip, Extension(16, 3, strength=0.5))
    assert (start.latent.frames, start.latent.video) == (33, None)
    states = initial_states(transformer.config, start)
    target = grid_of(start.latent).frames * 6
    appended = states.video.positions[:, :, target:]
    assert torch.equal(appended, video_positions(3, 2, 3, clip.fps))
    assert torch.equal(
        states.video.clean_latent[:, target:], video_state(clip.video[:, :, 1:], 24.0).latent
    )
    assert (states.video.denoise_mask[:, target:] == 0.5).all()
    _, kept = carried_audio(clip, Extension(16, 3))
    assert (states.audio.denoise_mask[0, :, 0] == 0).sum() == kept
    assert (states.audio.denoise_mask[0, :kept, 0] == 0).all()


@settings(max_examples=40, deadline=None)
@given(
    latents=st.integers(2, 40),
    added=st.integers(1, 30),
    overlap=st.integers(1, 5),
    fps=st.sampled_from([12.0, 23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 60.0]),
)
def test_picture_and_sound_stay_together_at_any_length(latents, added, overlap, fps):
    """The joined sound fits the frames; carried sound lies within half a latent of the picture."""
    clip = clip_of(timing.pixel_frames(latents), fps)
    extension = Extension(8 * added, min(overlap, latents))
    audio, kept = carried_audio(clip, extension)
    first = clip.audio.shape[2] - kept
    assert torch.equal(audio[:, :, :kept], clip.audio[:, :, first:])
    begin = 8 * (latents - extension.overlap) / fps
    assert (
        abs(begin - first / timing.AUDIO_LATENTS_PER_SECOND)
        <= 0.5 / timing.AUDIO_LATENTS_PER_SECOND + 1e-9
    )
    start = carried(clip, extension)
    new = replace(
        start.latent, video=torch.zeros(1, 8, timing.latent_frames(start.latent.frames), 2, 3)
    )
    done = joined(clip, new, extension)
    assert done.frames == clip.frames + extension.frames
    assert done.video.shape[2] == timing.latent_frames(done.frames)
    assert done.audio.shape[2] == timing.audio_latents(done.frames, fps)


def test_adain_brings_the_statistics_of_the_old_clip(tiny, contexts):
    clip = replace(clip_of(), video=clip_of().video * 3 + 1)
    plain, moved = (
        extend(Run(tiny), clip, contexts, Extension(16, 2, adain=factor), SETTINGS).video[:, :, 4:]
        for factor in (0.0, 1.0)
    )
    assert (moved.std() - clip.video.std()).abs() < (plain.std() - clip.video.std()).abs()


def test_a_clip_without_sound_gets_only_a_longer_picture(tiny, contexts):
    mute = replace(clip_of(), audio=None, modalities="video")
    longer = extend(Run(tiny), mute, contexts, Extension(8, 1), SETTINGS)
    assert longer.audio is None
    assert longer.video.shape[2] == 5


@pytest.mark.parametrize(
    ("clip", "extension", "error", "message"),
    [
        (replace(clip_of(), video=None), Extension(), MismatchError, "finished clip"),
        (clip_of(), Extension(frames=12), SizeError, "multiple of 8"),
        (clip_of(), Extension(overlap=5), SizeError, "1 .. 4 latents"),
        (replace(clip_of(), version="2.0"), Extension(), MismatchError, "version 2.0"),
    ],
)
def test_requests_that_cannot_work_are_refused_first(
    clip, extension, error, message, tiny, contexts
):
    with pytest.raises(error, match=message):
        extend(Run(tiny), clip, contexts, extension, SETTINGS)
