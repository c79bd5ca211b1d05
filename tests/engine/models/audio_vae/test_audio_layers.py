"""Blocks of the audio VAE against the reference, all causality axes and norms."""

import pytest
import torch
from goldens import golden

from aiprod_engine.latents.patchify import patchify_audio
from aiprod_engine.latents.positions import audio_positions
from aiprod_engine.models.audio_vae.layers import (
    AttnBlock,
    CausalConv2d,
    Downsample,
    ResnetBlock,
    Upsample,
)
from aiprod_engine.models.audio_vae.statistics import PerChannelStatistics


def loaded(module, case, prefix):
    state = {k[len(prefix) :]: v for k, v in case.weights.items() if k.startswith(prefix)}
    if prefix.count(".") == 1:  # "height." must not catch "height.alt."
        state = {k: v for k, v in state.items() if not k.startswith("alt.")}
    module.load_state_dict(state, strict=True)
    return module.requires_grad_(False)


@pytest.mark.parametrize("case", golden("audio/causal_conv2d"))
def test_causal_conv(case):
    for name, call in case.call.items():
        weight = case.weights[f"{name}.conv.weight"]
        kernel = call["kernel_size"]
        conv = CausalConv2d(
            weight.shape[1],
            weight.shape[0],
            tuple(kernel) if isinstance(kernel, list) else kernel,
            call["causality_axis"],
            call["stride"],
            tuple(call["dilation"]) if isinstance(call["dilation"], list) else call["dilation"],
        )
        case.check(name, loaded(conv, case, f"{name}.")(case.inputs["x"]))


@pytest.mark.parametrize("case", golden("audio/downsample_upsample"))
def test_down_and_up(case):
    x = case.inputs["x"]
    for axis in case.call["axes"]:
        case.check(f"down.{axis}", loaded(Downsample(3, axis), case, f"down.{axis}.")(x))
        case.check(f"up.{axis}", loaded(Upsample(3, axis), case, f"up.{axis}.")(x))


@pytest.mark.parametrize("case", golden("audio/resnet_block"))
def test_resnet_block(case):
    for name, call in case.call.items():
        block = ResnetBlock(
            call["in_channels"], call["out_channels"], call["norm_type"], call["causality_axis"]
        )
        case.check(name, loaded(block, case, f"{name}.")(case.inputs[name]))


@pytest.mark.parametrize("case", golden("audio/attn_block"))
def test_attention_block(case):
    for name, call in case.call.items():
        block = AttnBlock(call["channels"], call["norm_type"])
        case.check(name, loaded(block, case, f"{name}.")(case.inputs[name]))


@pytest.mark.parametrize("case", golden("audio/per_channel_stats"))
def test_statistics_follow_the_token_order(case):
    latent = case.inputs["latent"]
    statistics = PerChannelStatistics(latent.shape[1] * latent.shape[3])
    loaded(statistics, case, "audio_vae.per_channel_statistics.")
    case.check("normalized", statistics.normalize(latent))
    case.check("denormalized", statistics.denormalize(latent))
    case.check("tokens", patchify_audio(latent))
    case.check("positions", audio_positions(latent.shape[2], batch=latent.shape[0]))
    torch.testing.assert_close(statistics.denormalize(statistics.normalize(latent)), latent)
