"""Complete loops over a toy network, through the real denoiser."""

from dataclasses import replace

import pytest
import torch
from goldens import golden

from aiprod_engine.errors import MismatchError, NonFiniteError
from aiprod_engine.sampling import loops
from aiprod_engine.sampling.res2s import _Interval, res_2s
from aiprod_engine.types import Streams

ALL = [
    loops.euler,
    loops.heun,
    loops.gradient_estimation,
    loops.euler_ancestral,
    loops.euler_cfg_pp,
    res_2s,
]


class GaussianNoise:
    """The same noise for a purpose and stream whatever the batch size, so that batches compare."""

    def __call__(self, shape, stream, purpose):
        seed = sum(map(ord, stream + purpose))
        one = torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed))
        return one.expand(shape).clone()


@pytest.fixture
def scene(token_state):
    """States of a batch of two with free, partly kept and kept tokens."""

    def make():
        generator = torch.Generator().manual_seed(11)
        video, video_clean = torch.randn(2, 2, 6, 4, generator=generator)
        audio, audio_clean = torch.randn(2, 2, 5, 3, generator=generator)
        v_mask = torch.tensor([0.0, 0.4, 1.0, 1.0, 1.0, 0.8]).reshape(1, 6, 1).repeat(2, 1, 1)
        a_mask = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0]).reshape(1, 5, 1).repeat(2, 1, 1)
        # A token starts as its mask says: mixed with its clean value.
        video = v_mask * video + (1 - v_mask) * video_clean
        audio = a_mask * audio + (1 - a_mask) * audio_clean
        return Streams(
            video=token_state(video, video_clean, v_mask),
            audio=token_state(audio, audio_clean, a_mask),
        )

    return make


SIGMAS = torch.tensor([1.0, 0.8, 0.45, 0.2, 0.0])


def denoiser_for(loop, toy_denoiser):
    if loop is not loops.euler_cfg_pp:
        return toy_denoiser()
    nothing = torch.zeros(1, 1, 1)
    return toy_denoiser(negative=Streams(nothing, nothing), force_uncond=True)


def check_streams(case, result):
    case.check("video", result.video.latent)
    case.check("audio", result.audio.latent)


@pytest.mark.parametrize("case", golden("sampling/loop_euler"))
def test_euler(case, states_of, toy_denoiser):
    result = loops.euler(toy_denoiser(), states_of(case), case.inputs["sigmas"])
    check_streams(case, result)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("case", golden("sampling/loop_frozen_audio"))
def test_kept_audio_comes_out_untouched(case, frozen, states_of, toy_denoiser):
    states = states_of(case, frozen=frozen)
    result = loops.euler(toy_denoiser(), states, case.inputs["sigmas"])
    check_streams(case, result)


@pytest.mark.parametrize("case", golden("sampling/loop_heun"))
def test_heun(case, states_of, toy_denoiser):
    check_streams(case, loops.heun(toy_denoiser(), states_of(case), case.inputs["sigmas"]))


@pytest.mark.parametrize("case", golden("sampling/loop_gradient_estimation"))
def test_gradient_estimation(case, states_of, toy_denoiser):
    sigmas, gamma = case.inputs["sigmas"], case.call["gamma"]
    result = loops.gradient_estimation(toy_denoiser(), states_of(case), sigmas, gamma=gamma)
    check_streams(case, result)


@pytest.mark.parametrize("case", golden("sampling/loop_euler_ancestral"))
def test_euler_ancestral(case, states_of, toy_denoiser, injected_noise):
    i, count = case.inputs, len(case.inputs["sigmas"]) - 1
    noise = injected_noise(
        {(s, f"step{k}"): i[f"noise_{s}"][k] for s in ("video", "audio") for k in range(count)}
    )
    options = {"eta": case.call["eta"], "s_noise": case.call["s_noise"]}
    result = loops.euler_ancestral(
        toy_denoiser(), states_of(case), i["sigmas"], noise=noise, **options
    )
    check_streams(case, result)
    # Video first; none in the last step.
    assert noise.draws == [(s, f"step{k}") for k in range(count - 1) for s in ("video", "audio")]


@pytest.mark.parametrize("case", golden("sampling/loop_res2s*"))
def test_res_2s(case, states_of, toy_denoiser, injected_noise):
    i, call, count = case.inputs, case.call, len(case.inputs["sigmas"]) - 1
    kinds = {"sub": "substep", "step": "step"}
    noise = injected_noise(
        {
            (stream, f"{purpose}{k}"): i[f"noise_{kind}_{stream}"][k]
            for stream in ("video", "audio")
            for kind, purpose in kinds.items()
            for k in range(count)
        }
    )
    result = res_2s(
        toy_denoiser(),
        states_of(case),
        i["sigmas"],
        noise=noise,
        eta=call["eta"],
        anchor_iterations=call["anchor_iterations"] if call["anchor_refinement"] else 0,
        per_token=call["per_token_sigmas"],
    )
    check_streams(case, result)
    order = [(s, p) for p in ("substep", "step") for s in ("video", "audio")]
    assert noise.draws == [(s, f"{p}{k}") for k in range(count) for s, p in order]


@pytest.mark.parametrize("loop", ALL)
def test_steps_of_no_length_do_no_harm(loop, scene, toy_denoiser):
    """Schedules of very many tokens begin with several sigmas that float32 cannot tell apart."""
    twice = torch.tensor([1.0, 1.0, 0.8, 0.45, 0.2, 0.0])
    result = loop(denoiser_for(loop, toy_denoiser), scene(), twice, noise=GaussianNoise())
    assert result.video.latent.isfinite().all()


def test_res_2s_evaluates_twice_a_step_and_once_more(scene, toy_denoiser):
    calls = []
    denoise = toy_denoiser()

    def spy(states, sigma, step):
        calls.append((round(sigma, 6), step))
        return denoise(states, sigma, step)

    res_2s(spy, scene(), SIGMAS, noise=GaussianNoise())
    middles = [round((a * b) ** 0.5, 6) for a, b in ((1, 0.8), (0.8, 0.45), (0.45, 0.2))]
    assert calls[1:6:2] == [(m, 0) for m in middles]
    assert [step for _, step in calls[0::2]] == [0, 1, 2, 3, 4]
    assert calls[-1] == (0.0011, 4)


def test_anchor_refinement_in_closed_form_equals_the_repeated_rule():
    interval = _Interval(0.6, 0.45, anchor_iterations=5)
    start, midpoint, x0 = torch.randn(3, 1, 4, 2)
    anchor, share = start, interval.h * interval.a21
    for _ in range(5):
        anchor = midpoint - share * (x0 - anchor)
    torch.testing.assert_close(interval.refined(start, midpoint, x0), anchor)


@pytest.mark.parametrize("loop", ALL)
def test_kept_tokens_stay_clean_and_inputs_untouched(loop, scene, toy_denoiser):
    states = scene()
    before = states.map(lambda s: s.latent.clone())
    out = loop(denoiser_for(loop, toy_denoiser), states, SIGMAS, noise=GaussianNoise())
    torch.testing.assert_close(out.video.latent[:, 0], states.video.clean_latent[:, 0])
    torch.testing.assert_close(out.audio.latent[:, 2], states.audio.clean_latent[:, 2])
    assert torch.equal(states.video.latent, before.video)
    assert torch.equal(states.audio.latent, before.audio)


def test_cfg_pp_without_noise_keeps_tokens_clean(scene, toy_denoiser):
    states = scene()
    out = loops.euler_cfg_pp(denoiser_for(loops.euler_cfg_pp, toy_denoiser), states, SIGMAS, eta=0)
    torch.testing.assert_close(out.video.latent[:, 0], states.video.clean_latent[:, 0])


def test_cfg_pp_with_equal_contexts_and_no_noise_is_euler(scene, toy_denoiser):
    denoise = denoiser_for(loops.euler_cfg_pp, toy_denoiser)
    out = loops.euler_cfg_pp(denoise, scene(), SIGMAS, eta=0.0)
    plain = loops.euler(toy_denoiser(), scene(), SIGMAS)
    torch.testing.assert_close(out.video.latent, plain.video.latent)
    torch.testing.assert_close(out.audio.latent, plain.audio.latent)


def test_ancestral_with_eta_zero_is_euler_and_draws_nothing(scene, toy_denoiser):
    out = loops.euler_ancestral(toy_denoiser(), scene(), SIGMAS, eta=0.0)
    plain = loops.euler(toy_denoiser(), scene(), SIGMAS)
    torch.testing.assert_close(out.video.latent, plain.video.latent)


@pytest.mark.parametrize("loop", ALL)
def test_batch_of_two_equals_two_of_one(loop, scene, one_sample, toy_denoiser):

    def run(states):
        return loop(denoiser_for(loop, toy_denoiser), states, SIGMAS, noise=GaussianNoise())

    both = run(scene())
    for k in (0, 1):
        one = run(scene().map(lambda s, k=k: one_sample(s, k)))
        torch.testing.assert_close(both.video.latent[k : k + 1], one.video.latent)
        torch.testing.assert_close(both.audio.latent[k : k + 1], one.audio.latent)


@pytest.mark.parametrize("present", ["video", "audio"])
@pytest.mark.parametrize("loop", ALL)
def test_one_stream_may_be_absent(loop, present, scene, toy_denoiser):
    states = Streams(**{present: getattr(scene(), present)})
    out = loop(denoiser_for(loop, toy_denoiser), states, SIGMAS, noise=GaussianNoise())
    absent = {"video": "audio", "audio": "video"}[present]
    assert getattr(out, absent) is None
    assert torch.isfinite(getattr(out, present).latent).all()


@pytest.mark.parametrize("loop", ALL)
def test_bf16_states_stay_bf16_and_near_float32(loop, scene, toy_denoiser):
    """Bound: a handful of roundings of values below 4, each at most 2^-7 of them."""

    def run(states):
        return loop(denoiser_for(loop, toy_denoiser), states, SIGMAS, noise=GaussianNoise())

    exact = run(scene())
    half = scene().map(
        lambda s: replace(s, latent=s.latent.bfloat16(), clean_latent=s.clean_latent.bfloat16())
    )
    rounded = run(half)
    assert rounded.video.latent.dtype == torch.bfloat16
    assert (rounded.video.latent.float() - exact.video.latent).abs().max() < 0.1
    assert (rounded.audio.latent.float() - exact.audio.latent).abs().max() < 0.1


@pytest.mark.parametrize("loop", ALL)
def test_every_step_is_reported(loop, scene, toy_denoiser):
    seen = []
    denoise = denoiser_for(loop, toy_denoiser)
    loop(denoise, scene(), SIGMAS, noise=GaussianNoise(), on_step=seen.append)
    assert [info.index for info in seen] == [0, 1, 2, 3]
    assert {info.count for info in seen} == {4}
    assert [info.sigma for info in seen] == SIGMAS.tolist()[:4]
    assert seen[0].denoised.video.shape == scene().video.latent.shape


@pytest.mark.parametrize("loop", ALL)
def test_a_value_that_is_not_finite_names_step_and_stream(loop, scene, toy_denoiser):
    denoise = denoiser_for(loop, toy_denoiser)

    def broken(states, sigma, step):
        prediction = denoise(states, sigma, step)
        if step == 2:
            prediction.audio[0, 0, 0] = torch.nan
        return prediction

    with pytest.raises(NonFiniteError, match="audio latent is not finite after step 3"):
        loop(broken, scene(), SIGMAS, noise=GaussianNoise())


@pytest.mark.parametrize("loop", [loops.euler_ancestral, loops.euler_cfg_pp, res_2s])
def test_stochastic_loops_ask_for_a_noise_source(loop, scene, toy_denoiser):
    with pytest.raises(MismatchError, match="draws noise"):
        loop(denoiser_for(loop, toy_denoiser), scene(), SIGMAS)


def test_cfg_pp_asks_for_the_unconditional_prediction(scene, toy_denoiser):
    with pytest.raises(MismatchError, match="force_uncond"):
        loops.euler_cfg_pp(toy_denoiser(), scene(), SIGMAS, noise=GaussianNoise())
