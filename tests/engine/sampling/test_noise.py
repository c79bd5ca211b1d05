"""Noise sources and the noiser."""

import pytest
import torch
from goldens import golden

from aiprod_engine.errors import MismatchError
from aiprod_engine.sampling.noise import (
    CpuNoise,
    WhitenedNoise,
    ancestral_noise,
    draw,
    noise_streams,
    noiser,
    temporal_tile_noise,
    whiten,
)
from aiprod_engine.types import Streams


def zeros(token_state, tokens, channels, **fields):
    latent = torch.zeros(1, tokens, channels)
    return token_state(latent, latent, torch.ones(1, tokens, 1), **fields)


@pytest.mark.parametrize("case", golden("sampling/noise_draw_order"))
def test_draw_order(case, token_state):
    source = CpuNoise(case.call["seed"])
    video, audio = case.call["video_tokens_channels"], case.call["audio_tokens_channels"]
    for stage, factor in ((1, 1), (2, 2)):
        states = Streams(
            video=zeros(token_state, video[0] * factor, video[1]),
            audio=zeros(token_state, audio[0] * factor, audio[1]),
        )
        drawn = draw(source, states, "initial")
        case.check(f"video.stage{stage}", drawn.video)
        case.check(f"audio.stage{stage}", drawn.audio)


@pytest.mark.parametrize("case", golden("sampling/noise_normalize"))
def test_whitening(case):
    case.check("noise", whiten(case.inputs["raw"]))


@pytest.mark.parametrize("case", golden("sampling/noiser"))
def test_noiser(case, token_state):
    i = case.inputs
    state = token_state(i["latent"], i["clean"], i["mask"])
    for k, scale in enumerate(case.call["scales"]):
        case.check(f"latent.{k}", noiser(state, scale, i["noise"]).latent)
    state = token_state(i["latent"], i["clean"], i["mask_binary"])
    noised = noiser(state, case.call["scale_binary"], i["noise_binary"])
    case.check("latent.binary", noised.latent)


def test_a_frozen_stream_stays_clean_but_draws(token_state, injected_noise):
    video, audio = torch.randn(1, 3, 4), torch.randn(1, 2, 4)
    source = injected_noise(
        {("video", "initial"): torch.randn(1, 3, 4), ("audio", "initial"): torch.randn(1, 2, 4)}
    )
    states = Streams(
        video=token_state(video, video, torch.ones(1, 3, 1)),
        audio=token_state(audio, audio, torch.zeros(1, 2, 1), frozen=True),
    )
    noised = noise_streams(states, 1.0, source)
    torch.testing.assert_close(noised.video.latent, source.recorded["video", "initial"])
    assert torch.equal(noised.audio.latent, audio)
    assert source.draws == [("video", "initial"), ("audio", "initial")]
    assert torch.equal(states.video.latent, video)


def test_scale_zero_keeps_the_content_and_still_draws(token_state):
    states = Streams(video=zeros(token_state, 3, 4))
    source = CpuNoise(7)
    kept = noise_streams(states, 0.0, source)
    assert torch.equal(kept.video.latent, states.video.latent)
    torch.randn(1, 3, 4, generator=(fresh := torch.Generator().manual_seed(7)))
    assert torch.equal(source.generator.get_state(), fresh.get_state())


def test_noise_takes_the_dtype_of_the_latent_unless_told(token_state):
    latent = torch.zeros(1, 3, 4, dtype=torch.bfloat16)
    states = Streams(video=token_state(latent, latent, torch.ones(1, 3, 1)))
    assert draw(CpuNoise(0), states, "step0").video.dtype == torch.bfloat16
    assert draw(CpuNoise(0), states, "step0", torch.float32).video.dtype == torch.float32
    assert noiser(states.video, 1.0, torch.randn(1, 3, 4)).latent.dtype == torch.bfloat16


def test_seeds_of_the_step_noise():
    """10,000 apart for ancestral Euler; 1000 per round plus tile; -1 and 9999 for res_2s."""
    shape = (1, 3, 4)
    for source, seed in ((ancestral_noise(5), 10_005), (temporal_tile_noise(5, 2, 3), 2008)):
        assert torch.equal(source(shape, "video", "step0"), CpuNoise(seed)(shape, "video", "step0"))
    for purpose, seed in (("step0", -1), ("substep0", 9999)):
        generator = torch.Generator().manual_seed(seed)
        raw = torch.randn(shape, generator=generator, dtype=torch.float64)
        drawn = WhitenedNoise()(shape, "video", purpose)
        assert drawn.dtype == torch.float32
        torch.testing.assert_close(drawn, whiten(raw).float())


def test_whitened_noise_has_unit_statistics_in_every_sample():
    noise = WhitenedNoise(3)((2, 40, 8), "video", "step0")
    torch.testing.assert_close(noise.mean(dim=(1, 2)), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(noise.std(dim=(1, 2)), torch.ones(2))


def test_a_draw_without_a_source_says_so(token_state):
    with pytest.raises(MismatchError, match="step3 draws noise"):
        draw(None, Streams(video=zeros(token_state, 3, 4)), "step3")
