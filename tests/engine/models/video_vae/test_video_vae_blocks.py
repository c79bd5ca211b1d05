"""Building blocks against ltx-core 1.0.0, float32 on the CPU."""

import pytest
import torch
from goldens import golden

from aiprod_engine.models.video_vae.blocks import (
    Conv,
    Downsample,
    ResnetBlock,
    Upsample,
    pack,
    pad_time,
    patchify,
    pixel_norm,
    unpack,
    unpatchify,
)
from aiprod_engine.models.video_vae.config import ResampleConfig
from aiprod_engine.models.video_vae.statistics import PerChannelStatistics


def loaded(module, weights):
    module.load_state_dict(weights, strict=True)
    return module.requires_grad_(False)


def apply(conv, x, causal):
    return conv(conv.pad_space(pad_time(x, causal)))


@pytest.mark.parametrize(
    "case",
    golden(
        "video_vae/causal_conv_zeros",
        "video_vae/causal_conv_reflect",
        "video_vae/causal_conv_replicate",
    ),
)
def test_conv(case):
    config = case.config
    conv = Conv(config["in_channels"], config["out_channels"], config["spatial_padding_mode"])
    loaded(conv, case.weights)
    for suffix in ("", "_t1"):
        x = case.inputs[f"x{suffix}"]
        case.check(f"causal{suffix}", apply(conv, x, True))
        case.check(f"noncausal{suffix}", apply(conv, x, False))
        frames = pad_time(x, True).split(1, dim=2)
        for rows in (None, 1, 3, 5):
            windows = [conv.window([*frames[i : i + 3]], rows) for i in range(x.shape[2])]
            case.check(f"causal{suffix}", torch.cat(windows, dim=2))
            case.check(f"causal{suffix}", conv.window([*frames], rows))


@pytest.mark.parametrize("case", golden("video_vae/causal_conv_strided"))
def test_strided_conv(case):
    config = case.config
    for name, stride in config["strides"].items():
        conv = Conv(config["in_channels"], config["out_channels"], "zeros", tuple(stride))
        loaded(conv, {k[len(name) + 1 :]: v for k, v in case.weights.items() if name in k})
        case.check(name, apply(conv, case.inputs["x"], True))


@pytest.mark.parametrize("case", golden("video_vae/pixel_norm"))
def test_pixel_norm(case):
    case.check("y", pixel_norm(case.inputs["x"]))


@pytest.mark.parametrize(
    "case", golden("video_vae/resnet_block_zeros", "video_vae/resnet_block_reflect")
)
def test_resnet_block(case):
    block = ResnetBlock(case.config["in_channels"], case.config["spatial_padding_mode"])
    loaded(block, case.weights)
    x = case.inputs["x"]
    before = x.clone()
    case.check("causal", block(x, True))
    case.check("noncausal", block(x, False))
    assert torch.equal(x, before)


@pytest.mark.parametrize("case", golden("video_vae/space_to_depth_*"))
def test_downsample(case):
    config = case.config
    change = ResampleConfig(config["in_channels"], config["out_channels"], tuple(config["stride"]))
    block = loaded(Downsample(change, config["spatial_padding_mode"]), case.weights)
    case.check("y", block(case.inputs["x"], True))
    case.check("y_t1", block(case.inputs["x_t1"], True))


@pytest.mark.parametrize("case", golden("video_vae/depth_to_space_*"))
def test_upsample(case):
    config = case.config
    channels = config["in_channels"]
    change = ResampleConfig(
        channels, channels // config["multiplier"], tuple(config["stride"]), config["residual"]
    )
    block = loaded(Upsample(change, config["spatial_padding_mode"]), case.weights)
    case.check("noncausal", block(case.inputs["x"], False))
    case.check("causal", block(case.inputs["x"], True))
    case.check("noncausal_t1", block(case.inputs["x_t1"], False))


@pytest.mark.parametrize("case", golden("video_vae/patchify"))
def test_patchify(case):
    y = patchify(case.inputs["x"], case.config["patch_size"])
    case.check("y", y)
    assert torch.equal(unpatchify(y, case.config["patch_size"]), case.inputs["x"])


def test_pack_and_unpack_are_inverse():
    x = torch.randn(2, 3, 4, 6, 10)
    for stride in ((2, 1, 1), (1, 2, 2), (2, 2, 2)):
        assert torch.equal(unpack(pack(x, stride), stride), x)


@pytest.mark.parametrize("case", golden("video_vae/per_channel_statistics"))
def test_statistics(case):
    weights = {k.rsplit(".", 1)[1]: v for k, v in case.weights.items()}
    statistics = loaded(PerChannelStatistics(case.config["latent_channels"]), weights)
    x, rough = case.inputs["x"], case.inputs["x_bf16"].bfloat16()
    case.check("normalize", statistics.normalize(x))
    case.check("un_normalize", statistics.un_normalize(x))
    case.check("normalize_bf16", statistics.normalize(rough).float())
    case.check("un_normalize_bf16", statistics.un_normalize(rough).float())
