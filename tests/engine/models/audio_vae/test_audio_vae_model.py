"""Encoder and decoder: golden values, published shapes, properties, closed-world config."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from goldens import ROOT, golden

from aiprod_engine.errors import UnsupportedConfig
from aiprod_engine.models.audio_vae.config import AudioVAEConfig
from aiprod_engine.models.audio_vae.decoder import AudioDecoder
from aiprod_engine.models.audio_vae.encoder import AudioEncoder

MANIFESTS = Path(ROOT).parent / "manifests"
PUBLISHED = {
    "model": {
        "params": {
            "ddconfig": {
                "double_z": True,
                "mel_bins": 64,
                "z_channels": 8,
                "resolution": 256,
                "downsample_time": False,
                "in_channels": 2,
                "out_ch": 2,
                "ch": 128,
                "ch_mult": [1, 2, 4],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "dropout": 0.0,
                "mid_block_add_attention": False,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
            "sampling_rate": 16000,
        }
    },
    "preprocessing": {
        "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
        "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
    },
}


def section(**ddconfig):
    return {"model": {"params": {"ddconfig": ddconfig}}}


def small(axis="height", **changes):
    return AudioVAEConfig(
        **{"ch": 8, "z_channels": 2, "mel_bins": 16, "num_res_blocks": 1, "causality_axis": axis}
        | {"mid_block_add_attention": False}
        | changes
    )


@pytest.mark.parametrize("case", golden("audio/encoder_tiny", "audio/encoder_tiny_attn"))
def test_encoder_matches_reference(case, build):
    encoder = build("encoder", case.config, case.weights)
    case.check("latent", encoder(case.inputs["mel"]))


@pytest.mark.parametrize("case", golden("audio/decoder_*"))
def test_decoder_matches_reference(case, build):
    decoder = build("decoder", case.config, case.weights)
    case.check("mel", decoder(case.inputs["latent"]))


@pytest.mark.parametrize("case", golden("audio/encoder_tiny_attn"))
def test_every_encoder_weight_matters(case, build, idle):
    """Except the key biases of attention, which cancel in the softmax."""
    names = idle(build("encoder", case.config, case.weights), case.inputs["mel"])
    assert all(name.endswith(".k.bias") for name in names)


@pytest.mark.parametrize("case", golden("audio/decoder_tiny"))
def test_every_decoder_weight_matters(case, build, idle):
    assert idle(build("decoder", case.config, case.weights), case.inputs["latent"]) == []


@pytest.mark.parametrize("case", golden("audio/decoder_tiny"))
def test_decoder_is_causal_repeatable_and_batched(case, build):
    decoder = build("decoder", case.config, case.weights)
    latent = case.inputs["latent"]
    mel = decoder(latent)
    assert torch.equal(decoder(latent), mel)
    torch.testing.assert_close(decoder(latent[1:]), mel[1:])
    changed = torch.cat((latent[:, :, :3], torch.randn_like(latent[:, :, 3:])), dim=2)
    # latents 0..2 own mel frames 0..8
    torch.testing.assert_close(decoder(changed)[:, :, :9], mel[:, :, :9])
    assert not torch.allclose(decoder(changed)[:, :, 9], mel[:, :, 9])


@pytest.mark.parametrize("case", golden("audio/encoder_tiny"))
def test_encoder_is_causal_repeatable_and_batched(case, build):
    encoder = build("encoder", case.config, case.weights)
    mel = torch.cat((case.inputs["mel"], torch.randn_like(case.inputs["mel"])))
    latent = encoder(mel)
    assert torch.equal(encoder(mel), latent)
    torch.testing.assert_close(encoder(mel[1:]), latent[1:])
    changed = torch.cat((mel[:, :, :9], torch.randn_like(mel[:, :, 9:])), dim=2)
    torch.testing.assert_close(encoder(changed)[:, :, :3], latent[:, :, :3])


@pytest.mark.parametrize("case", golden("audio/decoder_tiny"))
def test_bf16_stays_near_fp32(case, build):
    """bf16 keeps 8 bits: through about 20 convolutions 3 % of the signal's RMS."""
    decoder = build("decoder", case.config, case.weights)
    exact = decoder(case.inputs["latent"])
    rough = decoder.bfloat16()(case.inputs["latent"].bfloat16())
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).pow(2).mean().sqrt() < 0.03 * exact.pow(2).mean().sqrt()


@pytest.mark.parametrize("axis", ["height", "width", "width-compatibility", "none"])
@pytest.mark.parametrize("latents", [1, 2, 5])
def test_every_axis_gives_the_stated_sizes(axis, latents):
    mel = AudioDecoder(small(axis))(torch.randn(1, 2, latents, 4))
    assert mel.shape == (1, 2, 4 * latents - (0 if axis == "none" else 3), 16)


@pytest.mark.parametrize("frames", [4, 5, 17, 18])
def test_encoder_rounds_time_up(frames):
    assert AudioEncoder(small())(torch.randn(1, 2, frames, 16)).shape == (1, 2, -(-frames // 4), 4)


def test_group_norm_runs_without_causality():
    config = small("none", ch=32, z_channels=8, norm_type="group", mid_block_add_attention=True)
    latent = AudioEncoder(config)(torch.randn(1, 2, 16, 16))
    assert AudioDecoder(config)(latent).shape == (1, 2, 16, 16)


@pytest.mark.parametrize("version", ["2.0", "2.3", "2.5"])
def test_modules_are_the_published_tree(version, on_meta):
    manifest = json.loads(
        gzip.decompress((MANIFESTS / f"audio-vae-{version}.json.gz").read_bytes())
    )
    found, counts = {}, []
    for part in ("encoder", "decoder"):
        module = on_meta(part, {"audio_vae": PUBLISHED})
        counts.append(sum(p.numel() for p in module.parameters()))
        for name, tensor in module.state_dict().items():
            shared = name.startswith("per_channel_statistics.")
            found[f"audio_vae.{name}" if shared else f"audio_vae.{part}.{name}"] = list(
                tensor.shape
            )
    assert found == manifest
    assert counts == [21_333_008, 31_915_138]


def test_missing_keys_fall_back_to_the_stated_defaults():
    assert AudioVAEConfig.from_metadata({}) == AudioVAEConfig(
        in_channels=2,
        out_ch=2,
        ch=128,
        ch_mult=(1, 2, 4),
        num_res_blocks=2,
        attn_resolutions=(8, 16, 32),
        resolution=256,
        z_channels=8,
        mid_block_add_attention=True,
        norm_type="pixel",
        causality_axis="height",
        mel_bins=64,
    )


def test_no_causal_axis_may_be_written_as_null():
    parse = AudioVAEConfig.from_metadata
    assert parse(section(causality_axis=None)) == parse(section(causality_axis="none"))


def test_mel_bins_have_three_sources():
    by_mel = {"preprocessing": {"mel": {"n_mel_channels": 20}}}
    by_variables = {"variables": {"mel_bins": 24}}
    parse = AudioVAEConfig.from_metadata
    assert parse(section(mel_bins=16) | by_mel | by_variables).mel_bins == 16
    assert parse(by_mel | by_variables).mel_bins == 20
    assert parse(by_variables).mel_bins == 24


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (section(norm_type="batch"), "norm_type is 'batch'"),
        (section(causality_axis="depth"), "causality_axis is 'depth'"),
        (section(norm_type="group"), "needs causality_axis 'none', found 'height'"),
        (section(double_z=False), "double_z is False"),
        ({"model": {"params": {"sampling_rate": 44100}}}, "sampling_rate is 44100"),
        ({"preprocessing": {"stft": {"hop_length": 256}}}, "hop_length is 256; supported: 160"),
        ({"preprocessing": {"stft": {"causal": False}}}, "stft.causal is False"),
        ({"preprocessing": {"mel": {"mel_fmax": 7600}}}, "mel_fmax is 7600"),
    ],
)
def test_unknown_values_raise(bad, named):
    with pytest.raises(UnsupportedConfig, match=named):
        AudioVAEConfig.from_metadata(bad)
