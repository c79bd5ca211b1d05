"""Guidance arithmetic, schedules of strengths, step skipping, planned passes."""

import pytest
import torch
from goldens import golden

from aiprod_engine.errors import MismatchError
from aiprod_engine.models.transformer.perturbations import plan_keep
from aiprod_engine.sampling.guidance import Apg, Guidance, GuidanceSchedule
from aiprod_engine.sampling.guiders import (
    apg_delta,
    cfg_delta,
    cfg_star_delta,
    cfg_star_scale,
    combine,
    stg_delta,
)
from aiprod_engine.sampling.passes import plan_passes

PASSES = ("cond", "uncond", "perturbed", "isolated")


@pytest.mark.parametrize("case", golden("sampling/guider_cfg"))
def test_cfg(case):
    i, scale = case.inputs, case.call["scale"]
    case.check("delta", cfg_delta(i["cond"], i["uncond"], scale))
    guided, _ = combine(Guidance(cfg=scale), i)
    torch.testing.assert_close(guided, i["cond"] + case.outputs["delta"])


@pytest.mark.parametrize("case", golden("sampling/guider_cfg_star"))
def test_cfg_star(case):
    i, scale = case.inputs, case.call["scale"]
    case.check("alpha", cfg_star_scale(i["cond"], i["uncond"])[0, 0, 0])
    case.check("delta", cfg_star_delta(i["cond"], i["uncond"], scale))
    guided, _ = combine(Guidance(cfg=scale, rule="cfg_star"), i)
    torch.testing.assert_close(guided, i["cond"] + case.outputs["delta"])


@pytest.mark.parametrize("case", golden("sampling/guider_stg"))
def test_stg(case):
    i, scale = case.inputs, case.call["scale"]
    case.check("delta", stg_delta(i["cond"], i["perturbed"], scale))
    guided, _ = combine(Guidance(stg=scale), i)
    torch.testing.assert_close(guided, i["cond"] + case.outputs["delta"])


@pytest.mark.parametrize("case", golden("sampling/guider_apg"))
def test_apg(case):
    i, scale = case.inputs, case.call["scale"]
    for k, options in enumerate(case.call["cases"]):
        rule = Apg(**options)
        delta, _ = apg_delta(i["cond"], i["uncond"], scale, rule)
        case.check(f"delta.{k}", delta)
        guided, _ = combine(Guidance(cfg=scale, rule=rule), i)
        torch.testing.assert_close(guided, i["cond"] + case.outputs[f"delta.{k}"])


@pytest.mark.parametrize("case", golden("sampling/guider_apg_momentum"))
def test_apg_with_momentum(case):
    options = dict(case.call)
    scale, average = options.pop("scale"), None
    for k in range(3):
        cond, uncond = case.inputs[f"cond.{k}"], case.inputs[f"uncond.{k}"]
        delta, average = apg_delta(cond, uncond, scale, Apg(**options), average)
        case.check(f"delta.{k}", delta)


@pytest.mark.parametrize("case", golden("sampling/guider_multimodal"))
def test_multimodal(case):
    needed = []
    for k, options in enumerate(case.call["cases"]):
        guidance = Guidance(**options)
        guided, _ = combine(guidance, case.inputs)
        case.check(f"x0.{k}", guided)
        names = {one.name for one in plan_passes(guidance, None)}
        only = {name: case.inputs[name] for name in names}
        assert torch.equal(combine(guidance, only)[0], guided)
        needed.append([float(name in names) for name in PASSES[1:]])
    case.check("passes_needed", torch.tensor(needed))


@pytest.mark.parametrize("case", golden("sampling/guider_schedule"))
def test_schedule_and_skipping(case):
    bounds = case.inputs["bin_upper_bounds"].tolist()
    schedule = GuidanceSchedule({b: Guidance(cfg=float(k)) for k, b in enumerate(bounds)})
    chosen = [schedule.at(s).cfg for s in case.inputs["probe_sigmas"].tolist()]
    case.check("chosen_bin", torch.tensor(chosen))
    rows, steps = case.outputs["skip"].shape
    skip = [[Guidance(skip_step=k).skips(i) for i in range(steps)] for k in range(rows)]
    case.check("skip", torch.tensor(skip).float())


@pytest.mark.parametrize("case", golden("sampling/perturbation_masks"))
def test_records_reach_the_blocks_they_name(case):
    """The records are ours, the masks are what the transformer makes of them."""
    types = {
        "video_self": "skip_video_self_attn",
        "audio_self": "skip_audio_self_attn",
        "a2v": "skip_a2v_cross_attn",
        "v2a": "skip_v2a_cross_attn",
    }
    samples = [
        [{"type": types[kind], "blocks": blocks} for kind, blocks in records]
        for records in case.call["samples"]
    ]
    like = torch.ones(len(samples), 1, 1)
    plan = plan_keep(samples, case.call["num_blocks"], like)
    keep = [[(getattr(block, t) * like).flatten() for block in plan] for t in types]
    case.check("keep", torch.stack([torch.stack(blocks) for blocks in keep]))


def test_a_bound_given_as_double_matches_the_float32_sigma():
    schedule = GuidanceSchedule({1.0: Guidance(cfg=2.0), 0.909375: Guidance(cfg=5.0)})
    assert schedule.at(float(torch.tensor(0.909375))).cfg == 5.0


def test_an_empty_schedule_is_refused():
    with pytest.raises(MismatchError, match="at least one bin"):
        GuidanceSchedule({})


def test_passes_of_the_presets_in_batch_order():
    full = Guidance(cfg=3.0, stg=1.0, stg_blocks=(28,), modality=3.0)
    assert [p.name for p in plan_passes(full, full)] == list(PASSES)
    assert [p.context for p in plan_passes(full, full)] == [
        "positive",
        "negative",
        "positive",
        "positive",
    ]
    assert [p.name for p in plan_passes(Guidance(), Guidance())] == ["cond"]
    assert [p.name for p in plan_passes(None, Guidance(cfg=7.0))] == ["cond", "uncond"]
    assert [p.name for p in plan_passes(Guidance(), None, force_uncond=True)] == ["cond", "uncond"]


def test_the_perturbed_pass_names_only_streams_with_stg():
    video, audio = Guidance(cfg=3.0), Guidance(stg=1.5, stg_blocks=(0, 3))
    perturbed = next(p for p in plan_passes(video, audio) if p.name == "perturbed")
    assert perturbed.perturbations == ({"type": "skip_audio_self_attn", "blocks": [0, 3]},)
    everywhere = plan_passes(Guidance(stg=1.0, stg_blocks=None), None)[-1]
    assert everywhere.perturbations == ({"type": "skip_video_self_attn", "blocks": None},)


def test_the_isolated_pass_cuts_both_directions_in_all_blocks():
    isolated = plan_passes(Guidance(modality=3.0), Guidance())[-1]
    assert [(r["type"], r["blocks"]) for r in isolated.perturbations] == [
        ("skip_a2v_cross_attn", None),
        ("skip_v2a_cross_attn", None),
    ]


def test_momentum_is_neutral_at_zero_and_not_at_one():
    rule = Apg(momentum=0.0)
    assert not Guidance(cfg=0.0, rule=rule).needs_uncond
    assert Guidance(cfg=1.0, rule=rule).needs_uncond


@pytest.mark.parametrize("rule", ["cfg", "cfg_star", Apg(0.3, 2.0), Apg(0.3, 2.0, -0.5)])
def test_batch_of_two_equals_two_of_one(rule):
    guidance = Guidance(cfg=3.0, stg=1.0, rescale=0.7, modality=3.0, rule=rule)
    # Samples of very different size: a statistic across the batch would show.
    size = torch.tensor([1.0, 20.0])[:, None, None]
    batch = {name: torch.randn(2, 5, 4) * size for name in PASSES}
    average = torch.randn(2, 5, 4)
    both, both_average = combine(guidance, batch, average)
    for k in (0, 1):
        own = {name: x[k : k + 1] for name, x in batch.items()}
        one, one_average = combine(guidance, own, average[k : k + 1])
        torch.testing.assert_close(both[k : k + 1], one)
        if both_average is not None:
            torch.testing.assert_close(both_average[k : k + 1], one_average)


def test_guidance_is_computed_in_float32_and_returned_in_the_dtype_of_cond():
    passes = {name: torch.randn(1, 5, 4) for name in PASSES}
    half = {name: x.bfloat16() for name, x in passes.items()}
    guidance = Guidance(cfg=3.0, stg=1.0, rescale=0.7, modality=3.0)
    out, _ = combine(guidance, half)
    exact, _ = combine(guidance, {name: x.float() for name, x in half.items()})
    assert torch.equal(out, exact.bfloat16())
