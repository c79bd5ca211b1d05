"""Every assumption about the configuration is checked, and the manifests follow from it."""

import gzip
import json
from math import prod
from pathlib import Path

import pytest

from aiprod_engine.errors import UnsupportedConfig
from aiprod_engine.models.video_vae import VideoDecoder, VideoVAEConfig

MANIFESTS = Path(__file__).parents[3] / "manifests"
parse = VideoVAEConfig.from_metadata

PARAMETERS = [  # the counts of the published files
    ("2.0", "encoder", 694_098_881),
    ("2.0", "decoder", 528_380_720),
    ("2.3", "encoder", 318_936_897),
    ("2.3", "decoder", 407_169_072),
    ("2.5-conv", "encoder", 318_936_897),
    ("2.5-conv", "decoder", 407_169_072),
    ("2.5-diffusion", "encoder", 318_936_897),
]


@pytest.mark.parametrize(("version", "side", "parameters"), PARAMETERS)
def test_modules_have_exactly_the_published_tensors(
    version, side, parameters, published, skeleton, state
):
    with gzip.open(MANIFESTS / f"video-vae-{version}.json.gz") as file:
        expected = state(side, json.load(file))
    module = skeleton(side, published(version))
    assert {k: list(v.shape) for k, v in module.state_dict().items()} == expected
    shared = sum(prod(s) for k, s in expected.items() if "statistics" in k)
    assert sum(prod(shape) for shape in expected.values()) - shared == parameters


def test_missing_padding_keys_mean_zeros_and_reflect(published):
    config = parse(published("2.0"))
    assert (config.encoder.padding, config.decoder.padding) == ("zeros", "reflect")


def test_the_common_padding_key_comes_before_those_of_the_sides(published):
    sides = {"encoder_spatial_padding_mode": "reflect", "decoder_spatial_padding_mode": "zeros"}
    config = parse(published("2.0") | sides)
    assert (config.encoder.padding, config.decoder.padding) == ("reflect", "zeros")
    config = parse(published("2.0") | sides | {"spatial_padding_mode": "replicate"})
    assert (config.encoder.padding, config.decoder.padding) == ("replicate", "replicate")


def test_factors_and_defaults(published):
    config = parse(published("2.3"))
    for side in (config.encoder, config.decoder):
        assert (side.time_factor, side.space_factor * config.patch_size) == (8, 32)
    section = {k: v for k, v in published("2.0").items() if k.endswith("_blocks")}
    assert parse(section) == parse(published("2.0"))


def test_a_bare_integer_is_a_number_of_layers(published):
    section = published("2.3") | {"decoder_blocks": [["res_x", 2], ["compress_all", {}]]}
    stage = parse(section).decoder.blocks[-1]
    assert (stage.channels, stage.layers) == (128, 2)


def test_a_number_of_layers_means_nothing_to_a_resampler(published):
    blocks = {
        "encoder_blocks": [["res_x", 1], ["compress_all_res", 1]],
        "decoder_blocks": [["res_x", 1], ["compress_all", 1]],
    }
    config = parse(published("2.3") | blocks)
    encoder, decoder = config.encoder.blocks[1], config.decoder.blocks[0]
    assert (encoder.in_channels, encoder.out_channels) == (128, 256)  # multiplier 2
    assert (decoder.in_channels, decoder.out_channels) == (128, 128)  # multiplier 1


def test_residual_is_read_for_compress_all_only(published):
    blocks = [["res_x", 1], ["compress_space", {"residual": True, "multiplier": 2}]]
    assert not parse(published("2.3") | {"decoder_blocks": blocks}).decoder.blocks[0].residual


def test_the_diffusion_decoder_is_refused_and_its_encoder_is_not(published):
    config = parse(published("2.5-diffusion"))
    assert config.encoder == parse(published("2.3")).encoder
    with pytest.raises(UnsupportedConfig, match="diffusion decoder"):
        VideoDecoder(config)


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "AutoencoderKL"},
        {"dims": 2},
        {"norm_layer": "group_norm"},
        {"use_quant_conv": True},
        {"normalize_latent_channels": True},
        {"scaling_factor": 0.5},
        {"latent_log_var": "per_channel"},
        {"spatial_padding_mode": "circular"},
        {"latent_channels": 0},
        {"encoder_blocks": []},
        {"encoder_blocks": None},
        {"encoder_blocks": ["res_x"]},
        {"encoder_blocks": [["res_x", "4"]]},
        {"encoder_blocks": [[["res_x"], 4]]},
        {"encoder_blocks": [["compress_all", {"multiplier": 2}]]},
        {"encoder_blocks": [["attn", {"num_layers": 1}]]},
        {"encoder_blocks": [["compress_all_res", {"multiplier": 3}]], "encoder_base_channels": 4},
        {"decoder_blocks": [["res_x_y", {"multiplier": 2}]]},
        {"decoder_blocks": [["res_x", {"num_layers": 1, "inject_noise": True}]]},
        {"decoder_blocks": [["res_x", {"num_layers": 1, "attention": True}]]},
        {"decoder_blocks": [["res_x", {}]]},
        {
            "decoder_blocks": [["compress_all", {"multiplier": 2, "residual": True}]],
            "decoder_base_channels": 2,
        },
    ],
)
def test_what_is_not_implemented_is_refused(change, published):
    with pytest.raises(UnsupportedConfig):
        parse(published("2.3") | change)
