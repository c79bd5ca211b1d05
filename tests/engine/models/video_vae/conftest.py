"""Builds video VAE halves the way the loader does: on meta, strictly, by assignment."""

import pytest
import torch

from aiprod_engine.models.video_vae import VideoDecoder, VideoEncoder, VideoVAEConfig

MODULES = {"encoder": VideoEncoder, "decoder": VideoDecoder}
# Older exports carry three more statistics that nothing reads.
IGNORED = ("channel", "mean-of-stds", "mean-of-stds_over_std-of-means")


def half_of(side, tensors):
    """Entries of one half by module key; file keys may start with `vae.` or be bare."""
    bare = {key.removeprefix("vae."): value for key, value in tensors.items()}
    own = {k[len(side) + 1 :]: v for k, v in bare.items() if k.startswith(f"{side}.")}
    shared = {k: v for k, v in bare.items() if k.startswith("per_channel_statistics.")}
    return own | {k: v for k, v in shared.items() if k.split(".")[1] not in IGNORED}


def on_meta(side, section):
    with torch.device("meta"):
        return MODULES[side](VideoVAEConfig.from_metadata(section))


@pytest.fixture
def state():
    return half_of


@pytest.fixture
def skeleton():
    """skeleton(side, section): the half without weights."""
    return on_meta


@pytest.fixture
def build():
    """build(side, section, tensors): the half in float32, its own copy of the weights."""

    def make(side, section, tensors):
        module = on_meta(side, section)
        weights = {k: v.float().clone() for k, v in half_of(side, tensors).items()}
        module.load_state_dict(weights, strict=True, assign=True)
        return module.eval().requires_grad_(False)

    return make


def _published(blocks, **more):
    return {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 128,
        "scaling_factor": 1.0,
        "norm_layer": "pixel_norm",
        "patch_size": 4,
        "latent_log_var": "uniform",
        "use_quant_conv": False,
        "causal_decoder": False,
        "timestep_conditioning": False,
        "normalize_latent_channels": False,
        **blocks,
        **more,
    }


def _res(count):
    return ["res_x", {"num_layers": count}]


def _change(name, multiplier, **more):
    return [name, {"multiplier": multiplier, **more}]


ENCODER_20 = [
    *(_res(4), _change("compress_space_res", 2), _res(6), _change("compress_time_res", 2)),
    *(_res(6), _change("compress_all_res", 2), _res(2), _change("compress_all_res", 2), _res(2)),
]
DECODER_20 = [*[_res(5), _change("compress_all", 2, residual=True)] * 3, _res(5)]
ENCODER_23 = [
    *(_res(4), _change("compress_space_res", 2), _res(6), _change("compress_time_res", 2)),
    *(_res(4), _change("compress_all_res", 2), _res(2), _change("compress_all_res", 1), _res(2)),
]
DECODER_23 = [
    *(_res(4), _change("compress_space", 2), _res(6), _change("compress_time", 2)),
    *(_res(4), _change("compress_all", 1), _res(2), _change("compress_all", 2), _res(2)),
]
SECTION_20 = _published({"encoder_blocks": ENCODER_20, "decoder_blocks": DECODER_20})
SECTION_23 = _published(
    {"encoder_blocks": ENCODER_23, "decoder_blocks": DECODER_23},
    encoder_base_channels=128,
    decoder_base_channels=128,
    spatial_padding_mode="zeros",
)
SECTION_25 = {
    "_class_name": "CausalDiffusionVAE",
    "dims": 3,
    "model_output_type": "x0",
    "spatial_padding_mode": "zeros",
    "encoder": {
        "_class_name": "Encoder",
        "dims": 3,
        "in_channels": 3,
        "out_channels": 128,
        "blocks": ENCODER_23,
        "patch_size": 4,
        "latent_log_var": "constant",
        "latent_log_var_value": -7.824046010856292,
        "norm_layer": "pixel_norm",
        "base_channels": 128,
        "spatial_padding_mode": "zeros",
    },
    "decoder": {"_class_name": "NADiffusionDecoder"},
}
SECTIONS = {
    "2.0": SECTION_20,
    "2.3": SECTION_23,
    "2.5-conv": SECTION_23,
    "2.5-diffusion": SECTION_25,
}


@pytest.fixture
def published():
    """published(name): the `vae` section of a published file."""
    return lambda name: SECTIONS[name]
