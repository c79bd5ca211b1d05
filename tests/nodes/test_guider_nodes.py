"""The guider nodes: what their widgets mean to the engine, and that each changes a result."""

from importlib import import_module

import pytest
import torch

pytestmark = pytest.mark.host

PLAIN = {
    f"{stream}_{name}": value
    for stream in ("video", "audio")
    for name, value in {"stg": 0.0, "modality": 1.0, "rescale": 0.0}.items()
} | {"stg_blocks": "auto", "skip_step": 0}


@pytest.fixture
def contexts(pack, node_types):
    make = import_module("custom_nodes_x_aiprod.aiprod_engine.types").TextContext
    return [make(torch.zeros(1, 4, 8), torch.zeros(1, 4, 8), "2.3") for _ in range(2)]


@pytest.fixture
def build(node_types, contexts):
    def make(node, **inputs):
        positive, negative = contexts
        guider, unguided = (
            node_types[node].execute(positive=positive, negative=negative, **PLAIN | inputs).result
        )
        assert unguided.negative is None
        assert unguided.positive is positive
        return guider

    return make


@pytest.fixture
def guidance(pack, node_types):
    return import_module("custom_nodes_x_aiprod.aiprod_engine.sampling.guidance")


def test_cfg_star_is_a_rule_of_cfg_guider(build, guidance, node_types):
    scales = {"video_cfg": 3.0, "audio_cfg": 7.0}
    assert build("AIPRODCFGGuider", **scales).video == guidance.Guidance(3.0)
    star = build("AIPRODCFGGuider", rule="cfg_star", **scales)
    assert (star.video.rule, star.audio.rule) == ("cfg_star", "cfg_star")
    check = node_types["AIPRODCFGGuider"].validate_inputs
    assert check("auto") is True
    assert check("auto", rule="cfg_star") is True
    assert check("auto", rule="apg") == "rule must be one of cfg, cfg_star, got 'apg'"
    assert "stg_blocks takes" in check("1, x", rule="cfg")


def apg(build, **inputs):
    defaults = {
        "video_scale": 3.0, "audio_scale": 7.0, "eta": 0.0, "norm_threshold": 0.0,
        "running_average": False, "momentum": -0.5,
    }  # fmt: skip
    return build("AIPRODAPGGuider", **defaults | inputs)


def test_apg_guider_is_the_engines_rule(build, guidance):
    made = apg(build, eta=0.25, norm_threshold=5.0)
    rule = guidance.Apg(0.25, 5.0, None)
    assert made.video == guidance.Guidance(3.0, rule=rule)
    assert made.audio == guidance.Guidance(7.0, rule=rule)
    assert made.auto_blocks
    assert not made.video.is_momentum


def test_momentum_counts_with_the_running_average_only(build, guidance):
    made = apg(build, running_average=True, momentum=0.0)
    assert made.video.rule == guidance.Apg(0.0, 0.0, 0.0)
    assert made.video.is_momentum
    assert not apg(build, running_average=True, video_scale=0.0).video.needs_uncond
    assert not apg(build, video_scale=1.0).video.needs_uncond


def test_eta_one_is_plain_cfg(build, guidance):
    combine = import_module("custom_nodes_x_aiprod.aiprod_engine.sampling.guiders").combine
    torch.manual_seed(3)
    passes = {"cond": torch.randn(1, 6, 4), "uncond": torch.randn(1, 6, 4)}
    plain, _ = combine(guidance.Guidance(3.0), passes)
    same, _ = combine(apg(build, eta=1.0).video, passes)
    other, _ = combine(apg(build).video, passes)
    torch.testing.assert_close(same, plain)
    assert (other - plain).abs().max() > 1e-2


def test_common_widgets_reach_both_streams(build):
    made = apg(
        build, video_stg=1.5, audio_modality=2.0, video_rescale=0.25, skip_step=2,
        stg_blocks="14, 19",
    )  # fmt: skip
    assert (made.video.stg, made.audio.stg) == (1.5, 0.0)
    assert (made.video.modality, made.audio.modality) == (1.0, 2.0)
    assert (made.video.rescale, made.audio.rescale) == (0.25, 0.0)
    assert made.video.skip_step == made.audio.skip_step == 2
    assert made.video.stg_blocks == (14, 19)
    assert not made.auto_blocks
