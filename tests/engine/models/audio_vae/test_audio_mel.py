"""Waveform to log-mel: golden values, channel rules, lengths."""

import pytest
import torch
from goldens import golden
from hypothesis import given, settings
from hypothesis import strategies as st

from aiprod_engine.errors import SizeError
from aiprod_engine.models.audio_vae.mel import mel_filterbank, to_stereo, waveform_to_mel
from aiprod_engine.models.audio_vae.resample import resample
from aiprod_engine.timing import encoded_mel_frames, resampled_length

FLOOR = -11.512925


@pytest.mark.parametrize("case", golden("audio/mel_filterbank"))
def test_filterbank_matches_reference(case):
    bank = mel_filterbank()
    case.check("filterbank", bank)
    assert (bank > 0).sum() == 997
    assert bank.sum().item() == pytest.approx(4.09588, abs=1e-5)


@pytest.mark.parametrize("case", golden("audio/resample"))
def test_resample_is_bit_exact(case):
    for source, target in case.call["pairs"]:
        pair = f"{source}_{target}"
        y = resample(case.inputs[f"x_{pair}"], source, target)
        case.check(f"y_{pair}", y)
        # 0 on the machine that recorded the fixture; sin and cos may differ by one unit elsewhere
        torch.testing.assert_close(y, case.outputs[f"y_{pair}"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", golden("audio/mel_frontend_*"))
def test_front_end_matches_reference(case):
    rate = case.call["sample_rate"]
    wave = case.inputs["waveform"]
    case.check("resampled", resample(wave, rate, case.call["target_sample_rate"]))
    case.check("mel", waveform_to_mel(wave, rate))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000, 96000]), st.integers(1, 5000))
def test_lengths_follow_the_clock(rate, samples):
    resampled = resample(torch.zeros(1, 2, samples), rate, 16000)
    assert resampled.shape == (1, 2, resampled_length(samples, rate, 16000))
    length = resampled.shape[-1] if resampled.shape[-1] > 512 else 1024
    assert waveform_to_mel(torch.zeros(1, 2, samples), rate).shape[2] == encoded_mel_frames(length)


def test_resampling_keeps_a_tone():
    """A 1 kHz sine stays the same sine away from the borders (the roll-off keeps 1e-3)."""
    time = torch.arange(4410) / 44100
    tone = resample(torch.sin(2000 * torch.pi * time)[None], 44100, 16000)[0]
    expected = torch.sin(2000 * torch.pi * torch.arange(tone.numel()) / 16000)
    assert (tone - expected)[50:-50].abs().max() < 2e-3


@pytest.mark.parametrize(("samples", "frames"), [(1, 7), (512, 7), (513, 4), (640, 5)])
def test_short_clips_are_padded_with_silence(samples, frames):
    """The reflected border needs more than 512 samples; shorter clips count as 1024."""
    wave = torch.randn(1, 2, samples)
    mel = waveform_to_mel(wave, 16000)
    assert mel.shape == (1, 2, frames, 64)
    if samples <= 512:
        padded = torch.cat((wave, torch.zeros(1, 2, 1024 - samples)), dim=-1)
        assert torch.equal(mel, waveform_to_mel(padded, 16000))


def test_silence_is_the_floor():
    mel = waveform_to_mel(torch.zeros(1, 2, 1600), 16000)
    torch.testing.assert_close(mel, torch.full_like(mel, FLOOR))


def test_front_end_is_float32_whatever_comes_in():
    wave = torch.randn(1, 2, 2000)
    mel = waveform_to_mel(wave.bfloat16(), 24000)
    assert mel.dtype == torch.float32
    assert torch.equal(mel, waveform_to_mel(wave.bfloat16().float(), 24000))


def test_channel_rules():
    """Weights of the down-mix, read off with one channel at a time."""

    def weights(channels):
        return to_stereo(torch.eye(channels)[None])[0]  # (2, channels): sample i = channel i alone

    torch.testing.assert_close(weights(1), torch.ones(2, 1))
    torch.testing.assert_close(weights(2), torch.eye(2))
    torch.testing.assert_close(weights(3), torch.full((2, 3), 1 / 3))
    surround = torch.tensor([[1, 0, 0.707, 0, 0.707, 0], [0, 1, 0.707, 0, 0, 0.707]]) / 2.414
    torch.testing.assert_close(weights(6), surround)
    left = [1, 0, 0.707, 0, 0.707, 0, 0.707, 0]
    right = [0, 1, 0.707, 0, 0, 0.707, 0, 0.707]
    torch.testing.assert_close(weights(8), torch.tensor([left, right]) / 3.121)


def test_batch_equals_singles_and_input_is_untouched():
    wave = torch.randn(2, 2, 3000)
    kept = wave.clone()
    both = waveform_to_mel(wave, 44100)
    assert torch.equal(wave, kept)
    torch.testing.assert_close(both[1:], waveform_to_mel(wave[1:], 44100))


def test_waveform_without_batch_axis_raises():
    with pytest.raises(SizeError, match="batch, channels, samples"):
        waveform_to_mel(torch.zeros(2, 3000), 16000)
