"""Vocoders of 2.0 and 2.3/2.5: golden values, published shapes, properties, config."""

import copy
import gzip
import json
from pathlib import Path

import pytest
import torch
from goldens import ROOT, golden

from aiprod_engine.errors import UnsupportedConfig
from aiprod_engine.models.audio_vae.activations import Activation1d
from aiprod_engine.models.audio_vae.config import VocoderConfig
from aiprod_engine.models.audio_vae.resample import resample
from aiprod_engine.models.audio_vae.vocoder import (
    BandwidthExtendedVocoder,
    Vocoder,
    hann_kernel,
    hann_upsample,
)

MANIFESTS = Path(ROOT).parent / "manifests"
_BRANCHES = {
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "stereo": True,
}
FLAT = _BRANCHES | {
    "upsample_initial_channel": 1024,
    "resblock": "1",
    "upsample_rates": [6, 5, 2, 2, 2],
    "upsample_kernel_sizes": [16, 15, 8, 4, 4],
}
_AMP = _BRANCHES | {
    "resblock": "AMP1",
    "use_tanh_at_final": False,
    "activation": "snakebeta",
    "use_bias_at_final": False,
}
NESTED = {
    "vocoder": _AMP
    | {
        "upsample_initial_channel": 1536,
        "upsample_rates": [5, 2, 2, 2, 2, 2],
        "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
    },
    "bwe": _AMP
    | {
        "upsample_initial_channel": 512,
        "upsample_rates": [6, 5, 2, 2, 2],
        "upsample_kernel_sizes": [12, 11, 4, 4, 4],
        "apply_final_activation": False,
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 80,
        "n_fft": 512,
        "win_size": 512,
        "num_mels": 64,
    },
}


def nested(part, **changes):
    section = copy.deepcopy(NESTED)
    section[part] |= changes
    return section


@pytest.mark.parametrize("case", golden("audio/activation1d"))
def test_activation_matches_reference(case):
    x = case.inputs["x"]
    activation = Activation1d(x.shape[1]).requires_grad_(False)
    state = {k.removeprefix("act_post."): v for k, v in case.weights.items()}
    activation.load_state_dict(state, strict=True)
    case.check("upsampled", activation.upsample(x))
    case.check("snakebeta", activation.act(x))
    case.check("y", activation(x))
    ratio = case.call["hann_ratio"]
    case.check("hann_filter_ratio3", hann_kernel(ratio))
    case.check("hann_resampled", hann_upsample(x, ratio))


@pytest.mark.parametrize("case", golden("audio/activation1d"))
def test_published_filters_pass_a_constant(case):
    """The Kaiser filter sums to 1: up and down again, a constant stays (snake off: sin(0))."""
    activation = Activation1d(3).requires_grad_(False)
    for module in (activation.upsample, activation.downsample.lowpass):
        module.filter.copy_(case.outputs["kaiser_filter_ratio2_k12"])
    activation.act.alpha.fill_(-100)
    x = torch.full((1, 3, 20), 0.7)
    torch.testing.assert_close(activation(x), x)


def test_skip_path_is_the_resampler_away_from_the_borders():
    x = torch.randn(1, 2, 200)
    ours, theirs = hann_upsample(x, 3), resample(x, 16000, 48000)
    torch.testing.assert_close(ours[..., 30:-30], theirs[..., 30:-30], rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", golden("audio/vocoder20_tiny"))
def test_one_stage_matches_reference(case, build):
    vocoder = build("vocoder", case.config, case.weights)
    assert isinstance(vocoder, Vocoder)
    case.check("waveform", vocoder(case.inputs["mel"]))


@pytest.mark.parametrize("case", golden("audio/vocoder23_*"))
def test_two_stages_match_reference(case, build):
    vocoder = build("vocoder", case.config, case.weights)
    assert isinstance(vocoder, BandwidthExtendedVocoder)
    assert vocoder.sample_rate == 48000
    low = vocoder.vocoder(case.inputs["mel"])
    case.check("low", low)
    padded = torch.nn.functional.pad(low, (0, -low.shape[-1] % vocoder.hop))
    mel = vocoder.mel_stft(padded)
    case.check("bwe_mel", mel.transpose(2, 3))
    case.check("residual", vocoder.bwe_generator(mel))
    case.check("skip", hann_upsample(padded, vocoder.ratio))
    case.check("waveform", vocoder(case.inputs["mel"]))


@pytest.mark.parametrize("case", golden("audio/vocoder20_tiny", "audio/vocoder23_tiny"))
def test_every_weight_matters(case, build, idle):
    assert idle(build("vocoder", case.config, case.weights), case.inputs["mel"]) == []


@pytest.mark.parametrize("case", golden("audio/vocoder20_tiny", "audio/vocoder23_tiny"))
def test_repeatable_batched_float32_and_within_one(case, build):
    vocoder = build("vocoder", case.config, case.weights)
    mel = case.inputs["mel"][:1]
    pair = torch.cat((mel, mel.flip(2)))
    waves = vocoder(pair)
    assert torch.equal(vocoder(pair), waves)
    torch.testing.assert_close(vocoder(pair[1:]), waves[1:], rtol=1e-4, atol=2e-5)
    assert waves.abs().max() <= 1
    rough = vocoder(mel.bfloat16())
    assert rough.dtype == torch.float32
    assert torch.equal(rough, vocoder(mel.bfloat16().float()))


@pytest.mark.parametrize("case", golden("audio/vocoder20_tiny"))
def test_left_and_right_bins_are_not_interleaved(case, build):
    """conv_pre reads 64 bins of the left channel, then 64 of the right one."""
    vocoder = build("vocoder", case.config, case.weights)
    mel = case.inputs["mel"]
    weight = vocoder.conv_pre.weight
    weight[:, 64:] = 0
    muted = torch.cat((mel[:, :1], torch.zeros_like(mel[:, 1:])), dim=1)
    assert torch.equal(vocoder(mel), vocoder(muted))


@pytest.mark.parametrize("version", ["2.0", "2.3", "2.5"])
def test_modules_are_the_published_tree(version, on_meta):
    manifest = json.loads(gzip.decompress((MANIFESTS / f"vocoder-{version}.json.gz").read_bytes()))
    manifest.pop("vocoder.mel_stft.stft_fn.inverse_basis", None)  # stored but never read
    module = on_meta("vocoder", {"vocoder": FLAT if version == "2.0" else NESTED})
    assert {f"vocoder.{k}": list(v.shape) for k, v in module.state_dict().items()} == manifest
    parameters = sum(p.numel() for p in module.parameters())
    assert parameters == (55_592_802 if version == "2.0" else 128_537_448)
    assert module.sample_rate == (24000 if version == "2.0" else 48000)


def test_flat_defaults_are_those_of_2_0():
    assert VocoderConfig.from_metadata({}) == VocoderConfig.from_metadata(FLAT)
    assert VocoderConfig.from_metadata({"output_sampling_rate": 32000}).sample_rate == 32000


def test_final_activation_follows_the_place_in_the_model():
    two = VocoderConfig.from_metadata(nested("bwe", apply_final_activation=True))
    assert (two.generator.final, two.bandwidth.generator.final) == ("clamp", "none")
    assert VocoderConfig.from_metadata(FLAT).generator.final == "tanh"


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (FLAT | {"resblock": "2"}, "resblock is '2'; supported: '1'"),
        (FLAT | {"stereo": False}, "stereo is False"),
        (FLAT | {"upsample_rates": [6, 5]}, "equally long"),
        (nested("vocoder", resblock="1"), "vocoder.vocoder.resblock is '1'"),
        (nested("bwe", stereo=False), "vocoder.bwe.stereo is False"),
        (nested("bwe", activation="snake"), "vocoder.bwe.activation is 'snake'"),
        (nested("bwe", num_mels=80), "num_mels is 80"),
        (nested("bwe", win_size=400), "win_size is 400; supported: 512"),
        (nested("bwe", output_sampling_rate=44100), "output_sampling_rate % "),
        (nested("bwe", hop_length=160), "product of vocoder.bwe.upsample_rates is 240"),
        ({"vocoder": NESTED["vocoder"], "bwe": {}}, "must state input_sampling_rate, "),
        ({"bwe": NESTED["bwe"]}, "vocoder.vocoder must be an object"),
    ],
)
def test_unknown_values_raise(bad, named):
    with pytest.raises(UnsupportedConfig, match=named):
        VocoderConfig.from_metadata(bad)
