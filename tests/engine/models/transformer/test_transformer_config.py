"""The `transformer` section: published values pass, every other assumption is refused."""

from dataclasses import FrozenInstanceError

import pytest

from aiprod_engine.errors import UnsupportedConfig
from aiprod_engine.models.transformer import TransformerConfig


def test_an_empty_section_means_the_published_sizes():
    config = TransformerConfig.from_metadata({})
    assert (config.num_layers, config.video.dim, config.audio.dim) == (48, 4096, 2048)
    assert config.rope_type == "split"
    assert config.cross_rope().float64_grid
    assert config.av_ca_timestep_scale_multiplier == config.timestep_scale_multiplier
    assert config.block_rows == 6


def test_config_is_frozen_and_hashable():
    config = TransformerConfig.from_metadata({"positional_embedding_max_pos": [16, 512, 768]})
    assert config.positional_embedding_max_pos == (16, 512, 768)
    assert hash(config) == hash(TransformerConfig(positional_embedding_max_pos=(16, 512, 768)))
    with pytest.raises(FrozenInstanceError):
        config.num_layers = 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "Transformer3DModel"),
        ("dropout", 0.1),
        ("attention_bias", False),
        ("num_vector_embeds", 4),
        ("activation_fn", "gelu"),
        ("num_embeds_ada_norm", 500),
        ("use_linear_projection", True),
        ("only_cross_attention", True),
        ("cross_attention_norm", False),
        ("double_self_attention", True),
        ("upcast_attention", True),
        ("standardization_norm", "layer_norm"),
        ("norm_elementwise_affine", True),
        ("qk_norm", "layer_norm"),
        ("positional_embedding_type", "sinusoidal"),
        ("use_middle_indices_grid", False),
        ("use_audio_video_cross_attention", False),
        ("share_ff", True),
        ("av_cross_ada_norm", False),
        ("rope_type", "spiral"),
        ("audio_num_attention_heads", 16),
        ("cross_attention_dim", 2048),
        ("audio_cross_attention_dim", 4096),
        ("attention_head_dim", 127),
        ("audio_attention_head_dim", 63),
        ("num_layers", 0),
        ("num_layers", 48.0),
        ("num_layers", True),
        ("norm_eps", "1e-6"),
        ("ff_bias", 1),
        ("frequencies_precision", None),
        ("positional_embedding_max_pos", [20, 2048]),
        ("positional_embedding_max_pos", [20, 2048, -1]),
        ("audio_positional_embedding_max_pos", 20),
    ],
)
def test_unsupported_value_is_named(key, value):
    with pytest.raises(UnsupportedConfig, match=rf"transformer\.{key} must .*, found"):
        TransformerConfig.from_metadata({key: value})


@pytest.mark.parametrize("key", ["use_audio_video_cross_attention", "av_cross_ada_norm"])
def test_single_stream_builds_do_not_need_the_cross_switches(key):
    assert TransformerConfig.from_metadata({key: False}, "video").modalities == "video"


def test_unknown_modalities_are_refused():
    with pytest.raises(UnsupportedConfig, match="av, video, audio"):
        TransformerConfig(modalities="text")


def test_keys_of_the_text_side_are_ignored():
    section = {"connector_num_layers": 8, "text_encoder_norm_type": "per_token_rms"}
    assert TransformerConfig.from_metadata(section) == TransformerConfig()
