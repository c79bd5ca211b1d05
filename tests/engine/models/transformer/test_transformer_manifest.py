"""The network built from the published configuration has exactly the published tensors."""

import gzip
import json
from math import prod
from pathlib import Path

import pytest
import torch

from aiprod_engine.models.transformer import Transformer, TransformerConfig

MANIFESTS = Path(__file__).parents[3] / "manifests"
PREFIX = "model.diffusion_model."

# The published sections of the three versions, as far as the network reads them.
COMMON = {
    "_class_name": "AVTransformer3DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 128,
    "attention_type": "default",
    "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 2048,
    "audio_num_attention_heads": 32,
    "audio_out_channels": 128,
    "audio_positional_embedding_max_pos": [20],
    "av_ca_timestep_scale_multiplier": 1000.0,
    "av_cross_ada_norm": True,
    "caption_channels": 3840,
    "causal_temporal_positioning": True,
    "cross_attention_dim": 4096,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "dropout": 0.0,
    "frequencies_precision": "float64",
    "in_channels": 128,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "num_attention_heads": 32,
    "num_embeds_ada_norm": 1000,
    "num_layers": 48,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 128,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "positional_embedding_theta": 10000.0,
    "positional_embedding_type": "rope",
    "qk_norm": "rms_norm",
    "rope_type": "split",
    "share_ff": False,
    "standardization_norm": "rms_norm",
    "timestep_scale_multiplier": 1000,
    "upcast_attention": False,
    "use_audio_video_cross_attention": True,
    "use_linear_projection": False,
    "use_middle_indices_grid": True,
}
LATER = {
    "apply_gated_attention": True,
    "caption_proj_before_connector": True,
    "cross_attention_adaln": True,
}
PUBLISHED = {
    "2.0-19b": COMMON,
    "2.3-22b": COMMON | LATER,
    "2.5-22b": COMMON | LATER | {"ff_bias": False, "use_keyframes_abs_pos_embedding": True},
}
AUDIO_ONLY = (
    "audio_attn1",
    "audio_attn2",
    "audio_ff",
    "audio_patchify",
    "audio_proj_out",
    "audio_adaln_single",
    "audio_prompt",
    "audio_scale_shift_table",
    "audio_caption_projection",
)
# version -> tensors, parameters, parameters per block
TOTALS = {
    "2.0-19b": (3510, 18_876_174_592, 386_074_624),
    "2.3-22b": (4186, 18_988_838_144, 386_695_360),
    "2.5-22b": (4091, 18_987_859_200, 386_674_880),
}
# version -> tensors and billions of parameters of the video only, then of the audio only build
SINGLE = {
    "2.0-19b": ((1215, 13.04), (1215, 3.27)),
    "2.3-22b": ((1457, 13.12), (1457, 3.29)),
    "2.5-22b": ((1362, 13.12), (1457, 3.29)),
}


def manifest(version):
    with gzip.open(MANIFESTS / f"transformer-{version}.json.gz", "rt") as file:
        return {k.removeprefix(PREFIX): tuple(shape) for k, shape in json.load(file).items()}


def shapes(version, modalities):
    with torch.device("meta"):
        model = Transformer(TransformerConfig.from_metadata(PUBLISHED[version]), modalities)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def parameters(tensors):
    return sum(map(prod, tensors.values()))


@pytest.mark.parametrize("version", PUBLISHED)
def test_published_tensors(version):
    built = shapes(version, "av")
    assert built == manifest(version)
    block = {k: v for k, v in built.items() if k.startswith("transformer_blocks.7.")}
    assert (len(built), parameters(built), parameters(block)) == TOTALS[version]


@pytest.mark.parametrize("version", PUBLISHED)
def test_video_only_tensors(version):
    wanted = {
        key: shape
        for key, shape in manifest(version).items()
        if not any(part in key for part in ("audio", "av_ca", "a2v"))
    }
    built = shapes(version, "video")
    assert built == wanted
    assert (len(built), round(parameters(built) / 1e9, 2)) == SINGLE[version][0]


@pytest.mark.parametrize("version", PUBLISHED)
def test_audio_only_tensors(version):
    wanted = {
        key: shape
        for key, shape in manifest(version).items()
        if any(part in key for part in AUDIO_ONLY)
    }
    built = shapes(version, "audio")
    assert built == wanted
    assert (len(built), round(parameters(built) / 1e9, 2)) == SINGLE[version][1]
