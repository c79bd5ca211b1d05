"""Every assumption about the configuration is checked; what is missing has the class's default."""

import copy

import pytest

from aiprod_engine.errors import UnsupportedConfig
from aiprod_engine.models.diffusion_vae import DiffusionDecoderConfig

parse = DiffusionDecoderConfig.from_metadata


def test_published_values(published):
    config = parse(published)
    assert (config.steps, config.time_scale, config.time_width) == (1, 1000.0, 384)
    assert [stage.depth for stage in config.stages] == [4, 6, 4, 2, 8]
    assert config.stages[-1].window == (11, 11, 11)


def test_missing_keys_have_the_defaults_of_the_class(published):
    for key in ("timestep_scale_multiplier", "default_num_inference_steps", "stage5_kernel"):
        del published["decoder"][key]
    published["decoder"]["stage_kernels"] = published["decoder"]["stage_kernels"][:4]
    config = parse(published)
    assert (config.steps, config.time_scale) == (2, 1.0)
    assert config.stages[-1].window == (3, 7, 7)


@pytest.mark.parametrize("key", ["_class_name", "model_output_type", "decoder"])
def test_what_must_be_stated(key, published):
    del published[key]
    with pytest.raises(UnsupportedConfig, match=key):
        parse(published)


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "CausalVideoAutoencoder"},
        {"dims": 2},
        {"model_output_type": "v"},
        {"spatial_padding_mode": "reflect"},
        {"decoder": None},
        {"decoder": {"_class_name": "Decoder"}},
        {"decoder": {"resampler_kind": "conv"}},
        {"decoder": {"spatial_padding_mode": "reflect"}},
        {"decoder": {"stage_channels": [2048, 1024, 512, 512]}},
        {"decoder": {"stage_channels": 2048}},
        {"decoder": {"stage_channels": [2048, 1024, 512, 512, 128]}},
        {"decoder": {"stage_depths": [4, 6, 4, 2, 0]}},
        {"decoder": {"stage_kernels": [[3, 7, 7]] * 3}},
        {"decoder": {"stage_kernels": [[3, 7, 7]] * 4 + [[11, 11]], "stage5_kernel": None}},
        {"decoder": {"stage_kernels": [[4, 7, 7]] * 4 + [[11, 11, 11]]}},
        {"decoder": {"stage5_kernel": [3, 7, 7]}},
        {"decoder": {"upsamples": [[[1, 2, 2], 2]]}},
        {"decoder": {"upsamples": [[[1, 2, 2], 2], [[2, 1, 1], 2], [[2, 2, 2], 1], [2, 2]]}},
        {"decoder": {"upsamples": [[[3, 2, 2], 2], [[2, 1, 1], 2], [[2, 2, 2], 1], [[2] * 3, 2]]}},
        {"decoder": {"upsamples": [[[1, 2, 2], 4], [[2, 1, 1], 2], [[2, 2, 2], 1], [[2] * 3, 2]]}},
        {"decoder": {"head_dim": 24}},
        {"decoder": {"head_dim": 96}},
        {"decoder": {"head_dim": True}},
        {"decoder": {"timestep_scale_multiplier": "1000"}},
        {"decoder": {"default_num_inference_steps": 0}},
    ],
    ids=str,
)
def test_what_is_not_implemented_is_refused(change, published):
    section = copy.deepcopy(published)
    decoder = change.get("decoder", {})
    section |= change
    if decoder is not None:
        section["decoder"] = published["decoder"] | decoder
    with pytest.raises(UnsupportedConfig):
        parse(section)
