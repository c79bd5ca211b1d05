"""Latent upsamplers against ltx-core 1.0.0 and diffusers 0.42.1, float32 on the CPU."""

import gzip
import json
from math import prod
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from goldens import golden

from aiprod_engine.errors import MismatchError, UnsupportedConfig
from aiprod_engine.models.upsampler import Upsampler, UpsamplerConfig
from aiprod_engine.models.upsampler.resamplers import BlurDown, shuffle
from aiprod_engine.models.video_vae import PerChannelStatistics

MANIFESTS = Path(__file__).parents[3] / "manifests"
NETWORKS = golden("upsampler/upsampler_*")
STATISTICS = "vae.per_channel_statistics."

PUBLISHED = {"_class_name": "LatentUpsampler", "in_channels": 128, "num_blocks_per_stage": 4}
SPATIAL = {"mid_channels": 1024, "spatial_upsample": True, "temporal_upsample": False}
TEMPORAL = {"mid_channels": 512, "spatial_upsample": False, "temporal_upsample": True}
FILES = [  # manifest, configuration, parameters
    ("spatial-x2-2.0", SPATIAL | {"spatial_scale": 2.0, "rational_resampler": True}, 497_867_929),
    ("spatial-x2-2.3", SPATIAL | {"spatial_scale": 2.0, "rational_resampler": False}, 497_867_904),
    ("spatial-x1.5-2.3", SPATIAL | {"spatial_scale": 1.5, "rational_resampler": True}, 545_058_969),
    ("temporal-x2", TEMPORAL, 130_968_192),  # 2.0
    ("temporal-x2", TEMPORAL | {"spatial_scale": 1.0, "rational_resampler": True}, 130_968_192),
]


def build(config, weights):
    with torch.device("meta"):
        model = Upsampler(UpsamplerConfig.from_metadata(config))
    state = {k: v.float().clone() for k, v in weights.items() if not k.startswith("vae.")}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def statistics_of(case):
    statistics = PerChannelStatistics(case.config["in_channels"])
    statistics.load_state_dict(
        {k.removeprefix(STATISTICS): v for k, v in case.weights.items() if STATISTICS in k}
    )
    return statistics


@pytest.mark.parametrize("case", NETWORKS)
def test_upsampler_matches_reference(case):
    model, statistics = build(case.config, case.weights), statistics_of(case)
    latent = case.inputs["latent"]
    case.check("raw", model.upsample(statistics.un_normalize(latent)))
    case.check("latent", model(latent, statistics))


@pytest.mark.parametrize(
    "case",
    golden("pipelines/ltx2_20_tiny_upsampler_x2", "pipelines/ltx2_23_tiny_upsampler_x2"),
)
def test_tiny_files_load_strictly(case):
    model = build(case.config, case.tensors)
    assert model.upsample(torch.randn(1, 8, 2, 2, 3)).shape == (1, 8, 2, 4, 6)


@pytest.mark.parametrize(("name", "config", "parameters"), FILES)
def test_modules_have_exactly_the_published_tensors(name, config, parameters):
    with gzip.open(MANIFESTS / f"upsampler-{name}.json.gz") as file:
        expected = json.load(file)
    with torch.device("meta"):
        model = Upsampler(UpsamplerConfig.from_metadata(PUBLISHED | {"dims": 3} | config))
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected
    assert sum(prod(shape) for shape in expected.values()) == parameters


@pytest.mark.parametrize("case", NETWORKS)
def test_every_weight_matters(case):
    model, statistics = build(case.config, case.weights), statistics_of(case)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for tensor in tensors.values():
        tensor.requires_grad_(True)
    model(case.inputs["latent"], statistics).square().sum().backward()
    idle = [k for k, t in tensors.items() if t.grad is None or not t.grad.any()]
    assert idle == case.call["inert_keys"]


@pytest.mark.parametrize("case", NETWORKS)
def test_batch_and_repetition(case):
    """Group norms see one sample at a time."""
    model, statistics = build(case.config, case.weights).double(), statistics_of(case)
    latent = case.inputs["latent"].double()
    latent = torch.cat((latent, latent.flip(-1).neg()))
    whole = model(latent, statistics)
    parts = torch.cat([model(part, statistics) for part in latent.split(1)])
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-10)
    assert torch.equal(whole, model(latent, statistics))


@pytest.mark.parametrize("case", NETWORKS)
def test_bfloat16_is_close_and_keeps_the_dtype_of_the_input(case):
    """Rounding to 8 bits after each of some 20 operations: 5 % of the signal."""
    model, statistics = build(case.config, case.weights), statistics_of(case)
    exact = model(case.inputs["latent"], statistics)
    rough = model.bfloat16()(case.inputs["latent"], statistics)
    assert rough.dtype == torch.float32
    assert (rough - exact).pow(2).mean().sqrt() < 0.05 * exact.pow(2).mean().sqrt()


@pytest.mark.parametrize("case", golden("upsampler/blur_downsample"))
def test_blur(case):
    for stride in case.call["strides"]:
        blur = BlurDown(stride)
        case.check("kernel", blur.kernel)
        case.check(f"stride{stride}", blur(case.inputs["x"]))


@pytest.mark.parametrize("case", golden("upsampler/pixel_shuffle"))
def test_order_of_channels_in_shuffles(case):
    """torch's own pixel shuffle has the reference's order, and so has ours."""
    x4, x5 = case.inputs["x4"], case.inputs["x5"]
    case.check("d1", shuffle(x5, (2, 1, 1)))
    case.check("d3", shuffle(x5, (2, 2, 2)))
    for name, factor in (("d2", 2), ("d2x3", 3)):
        case.check(name, F.pixel_shuffle(x4, factor))
        case.check(name, shuffle(x4.unsqueeze(2), (1, factor, factor)).squeeze(2))


def test_both_axes_at_once():
    config = {"in_channels": 4, "mid_channels": 32, "temporal_upsample": True}
    model = Upsampler(UpsamplerConfig.from_metadata(config))
    assert model.upsample(torch.randn(1, 4, 2, 2, 3)).shape == (1, 4, 3, 4, 6)


def test_defaults_are_those_of_the_reference():
    assert UpsamplerConfig.from_metadata({}) == UpsamplerConfig(
        128, 512, 4, True, False, 2.0, False
    )


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "Upscaler"},
        {"dims": 2},
        {"mid_channels": 48},
        {"num_blocks_per_stage": 0},
        {"spatial_upsample": False},
        {"spatial_upsample": "yes"},
        {"spatial_scale": 3.0, "rational_resampler": True},
        {"spatial_scale": 1.5},
    ],
)
def test_what_is_not_implemented_is_refused(change):
    with pytest.raises(UnsupportedConfig):
        UpsamplerConfig.from_metadata(change)


def test_another_latent_space_is_refused():
    model = Upsampler(UpsamplerConfig(in_channels=4, mid_channels=32, num_blocks_per_stage=1))
    with pytest.raises(MismatchError):
        model.upsample(torch.zeros(1, 5, 2, 2, 2))
