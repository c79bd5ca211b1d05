"""Single sampler steps."""

import pytest
import torch
from goldens import golden

from aiprod_engine.errors import SizeError
from aiprod_engine.sampling.denoise import x0_from_velocity
from aiprod_engine.sampling.loops import blend
from aiprod_engine.sampling.steps import (
    ancestral_weights,
    cfg_pp_weights,
    euler_step,
    exponential_coefficients,
    renoise,
    sde_coefficients,
    velocity,
)


def interval(case, index):
    return case.inputs["sigmas"].tolist()[index : index + 2]


@pytest.mark.parametrize("case", golden("sampling/velocity_x0"))
def test_velocity_and_x0(case):
    x, v, sigma = case.inputs["x"], case.inputs["velocity"], case.call["sigma"]
    case.check("x0_per_token", x0_from_velocity(x, v, case.inputs["timesteps"]))
    x0 = x0_from_velocity(x, v, sigma)
    case.check("x0_scalar", x0)
    case.check("velocity_back", velocity(x, x0, sigma))


@pytest.mark.parametrize("case", golden("sampling/post_process"))
def test_blend(case, token_state):
    i = case.inputs
    case.check("x0", blend(i["x0"], token_state(i["x0"], i["clean"], i["mask"])))


@pytest.mark.parametrize("case", golden("sampling/step_euler"))
def test_euler(case):
    for k in case.call["step_indices"]:
        case.check(f"x.{k}", euler_step(case.inputs["x"], case.inputs["x0"], *interval(case, k)))


@pytest.mark.parametrize("case", golden("sampling/step_euler_bf16"))
def test_euler_rounds_the_velocity_to_the_latent_dtype(case):
    x, x0 = case.inputs["x"].bfloat16(), case.inputs["x0"].bfloat16()
    for k in case.call["step_indices"]:
        out = euler_step(x, x0, *interval(case, k))
        assert out.dtype == torch.bfloat16
        case.check(f"x.{k}", out.float())
        # Stricter than the fixture's bound: bit-equal.
        assert torch.equal(out.float(), case.outputs[f"x.{k}"])


@pytest.mark.parametrize("case", golden("sampling/step_euler_ancestral"))
def test_euler_ancestral(case):
    for k, options in enumerate(case.call["cases"]):
        index = options.pop("step_index")
        weights = ancestral_weights(*interval(case, index), **options)
        i = case.inputs
        case.check(f"x.{k}", weights.mix(i["x"], i["x0"], None, i[f"noise.{k}"]))


@pytest.mark.parametrize("case", golden("sampling/step_euler_cfg_pp"))
def test_euler_cfg_pp(case):
    for k, options in enumerate(case.call["cases"]):
        index = options.pop("step_index")
        weights = cfg_pp_weights(*interval(case, index), **options)
        i = case.inputs
        case.check(f"x.{k}", weights.mix(i["x"], i["x0"], i["uncond_x0"], i["noise"]))


@pytest.mark.parametrize("case", golden("sampling/step_res2s"))
def test_renoise(case):
    i = case.inputs
    for k, options in enumerate(case.call["cases"]):
        sigmas = interval(case, options["step_index"])
        out = renoise(i["x"], i["x_target"], i["noise"], *sigmas, options["eta"])
        case.check(f"x.{k}", out)
    rows = case.outputs["sde_coefficients"][:, :2].double().tolist()
    table = [[s, eta, *sde_coefficients(s, eta)] for s, eta in rows]
    case.check("sde_coefficients", torch.tensor(table))


@pytest.mark.parametrize("case", golden("sampling/res2s_coefficients"))
def test_exponential_coefficients(case):
    rows = [[h, *exponential_coefficients(h)] for h in case.inputs["h"].double().tolist()]
    case.check("table", torch.tensor(rows))


def test_per_token_renoise_equals_scalar_renoise_token_by_token():
    x, target, noise = torch.randn(3, 1, 2, 4)
    mask = torch.tensor([[[1.0], [0.5]]])
    out = renoise(x, target, noise, mask * 0.8, mask * 0.6, 0.5)
    for token, m in ((0, 1.0), (1, 0.5)):
        alone = renoise(x, target, noise, m * 0.8, m * 0.6, 0.5)
        torch.testing.assert_close(out[:, token], alone[:, token])


def test_one_clean_token_disables_the_renoise():
    x, target, noise = torch.randn(3, 1, 2, 4)
    mask = torch.tensor([[[1.0], [0.0]]])
    assert torch.equal(renoise(x, target, noise, mask * 0.8, mask * 0.6, 0.5), target)


@pytest.mark.parametrize("weights", [ancestral_weights, cfg_pp_weights])
def test_eta_zero_without_guidance_is_euler(weights):
    x, x0 = torch.randn(2, 1, 3, 4)
    out = weights(0.8, 0.3, eta=0.0).mix(x, x0, x0, torch.randn(1, 3, 4))
    torch.testing.assert_close(out, euler_step(x, x0, 0.8, 0.3))


@pytest.mark.parametrize("weights", [ancestral_weights, cfg_pp_weights])
def test_the_last_step_returns_x0(weights):
    x, x0, noise = torch.randn(3, 1, 3, 4)
    assert torch.equal(weights(0.4, 0.0).mix(x, x0, x, noise), x0)


def test_a_step_from_sigma_zero_is_refused():
    with pytest.raises(SizeError, match="sigma above 0"):
        euler_step(torch.ones(1, 1, 1), torch.ones(1, 1, 1), 0.0, 0.0)
