"""The guided denoiser: passes, contexts, skipping, frozen and absent streams."""

from dataclasses import replace

import pytest
import torch
from goldens import golden

from aiprod_engine.errors import MismatchError
from aiprod_engine.models.transformer import Transformer, TransformerConfig
from aiprod_engine.sampling.denoise import Contexts, GuidedDenoiser, x0_from_velocity
from aiprod_engine.sampling.guidance import Apg, Guidance, GuidanceSchedule
from aiprod_engine.sampling.loops import euler
from aiprod_engine.types import Modality, Streams

FULL = Guidance(cfg=3.0, stg=1.0, stg_blocks=(1, 2), rescale=0.7, modality=3.0)
BOTH = Streams(FULL, replace(FULL, cfg=7.0, stg_blocks=(3,)))
SIGMAS = torch.tensor([1.0, 0.8, 0.45, 0.2, 0.0])


@pytest.fixture
def scene(token_state):
    """A batch of two with kept, partly kept and free tokens, masks and markers."""
    generator = torch.Generator().manual_seed(5)
    video, video_clean = torch.randn(2, 2, 6, 4, generator=generator)
    audio, audio_clean = torch.randn(2, 2, 5, 3, generator=generator)
    v_mask = torch.rand(2, 6, 1, generator=generator)
    a_mask = torch.rand(2, 5, 1, generator=generator)
    return Streams(
        video=token_state(
            video,
            video_clean,
            v_mask,
            attention_mask=torch.rand(2, 6, 6, generator=generator),
            keyframes_mask=torch.rand(2, 6, 1, generator=generator),
        ),
        audio=token_state(audio, audio_clean, a_mask),
    )


@pytest.fixture
def contexts():
    generator = torch.Generator().manual_seed(6)
    video, audio, video_negative, audio_negative = torch.randn(4, 1, 3, 5, generator=generator)
    return Contexts(Streams(video, audio), Streams(video_negative, audio_negative))


@pytest.mark.parametrize("batch_passes", [1, 2, 4])
@pytest.mark.parametrize("case", golden("sampling/loop_guided_*"))
def test_guided_euler(case, batch_passes, guided_toy, states_of, contexts_of, guidance_of):
    toy = guided_toy(case.call["num_blocks"])
    denoise = GuidedDenoiser(
        toy, contexts_of(case), guidance_of(case), batch_passes=batch_passes, predicts="x0"
    )
    counts = []

    def count(info):
        counts.append(float(toy.passes))
        toy.passes = 0

    result = euler(denoise, states_of(case), case.inputs["sigmas"], on_step=count)
    case.check("video", result.video.latent)
    case.check("audio", result.audio.latent)
    case.check("passes_per_step", torch.tensor(counts))


PREFIX = "model.diffusion_model."


def _outputs(case):
    """Velocities of the fixture's network, and the inputs they belong to."""
    with torch.device("meta"):
        network = Transformer(TransformerConfig.from_metadata(case.config["transformer"]))
    weights = {k.removeprefix(PREFIX): v for k, v in case.weights.items()}
    network.load_state_dict(weights, assign=True, strict=True)
    modalities = []
    for stream in ("video", "audio"):
        fields = case.group(f"in.{stream}.")
        modalities.append(Modality(tokens=fields.pop("latent"), **fields))
    with torch.no_grad():
        return modalities, network(*modalities)


@pytest.mark.parametrize("case", golden("transformer/x0_per_token"))
def test_x0_takes_the_timestep_of_each_token(case):
    for name, modality, v in zip(("video", "audio"), *_outputs(case), strict=True):
        case.check(name, x0_from_velocity(modality.tokens, v, modality.timesteps))


@pytest.mark.parametrize("case", golden("transformer/x0_scalar_sigma"))
def test_x0_of_one_sigma(case):
    for name, modality, v in zip(("video", "audio"), *_outputs(case), strict=True):
        case.check(name, x0_from_velocity(modality.tokens, v, case.call["sigma"]))


def test_velocities_become_x0_with_the_timestep_of_each_token(scene, contexts):
    velocities = torch.randn(2, 6, 4), torch.randn(2, 5, 3)
    out = GuidedDenoiser(lambda *_: velocities, contexts)(scene, 0.5, 0)
    expected = scene.video.latent - velocities[0] * scene.video.denoise_mask * 0.5
    torch.testing.assert_close(out.video, expected)
    expected = scene.audio.latent - velocities[1] * scene.audio.denoise_mask * 0.5
    torch.testing.assert_close(out.audio, expected)


def test_what_the_model_receives(scene, contexts, guided_toy):
    toy = guided_toy()
    denoise = GuidedDenoiser(
        toy, contexts, BOTH, dtype=torch.bfloat16, batch_passes=3, predicts="x0"
    )
    out = denoise(scene, 0.5, 0)
    assert out.video.dtype == torch.float32
    (video, audio, perturbations), (last, _, isolated) = toy.calls
    assert [len(c[2]) for c in toy.calls] == [6, 2]  # three passes of two samples, then one
    assert video.tokens.dtype == video.context.dtype == torch.bfloat16
    assert torch.equal(video.tokens[2:4], scene.video.latent.bfloat16())
    for field in (video.sigma, video.timesteps, video.positions):
        assert field.dtype == torch.float32
        assert len(field) == 6
    assert video.sigma.tolist() == [0.5] * 6
    assert torch.equal(video.timesteps[4:], scene.video.denoise_mask * 0.5)
    assert torch.equal(video.attention_mask[2:4], scene.video.attention_mask)
    assert torch.equal(video.keyframes_mask[2:4], scene.video.keyframes_mask)
    assert audio.attention_mask is None
    assert audio.keyframes_mask is None
    positive, negative = contexts.positive.audio, contexts.negative.audio
    rows = torch.cat([positive, positive, negative, negative, positive, positive])
    assert torch.equal(audio.context, rows.bfloat16())
    assert [len(records) for records in perturbations] == [0, 0, 0, 0, 2, 2]
    assert [len(records) for records in isolated] == [2, 2]
    assert torch.equal(last.tokens, scene.video.latent.bfloat16())


@pytest.mark.parametrize("rule", ["cfg", "cfg_star", Apg(0.5, 1.0, -0.5)])
@pytest.mark.parametrize("batch_passes", [2, 3, 4])
def test_batched_passes_equal_sequential_ones(rule, batch_passes, scene, contexts, guided_toy):
    guidance = BOTH.map(lambda g: replace(g, rule=rule))

    def run(count):
        denoise = GuidedDenoiser(guided_toy(), contexts, guidance, batch_passes=count)
        return euler(denoise, scene, SIGMAS)

    one, many = run(1), run(batch_passes)
    torch.testing.assert_close(many.video.latent, one.video.latent)
    torch.testing.assert_close(many.audio.latent, one.audio.latent)


@pytest.mark.parametrize("rule", ["cfg", "cfg_star", Apg(0.5, 1.0, -0.5)])
def test_batch_of_two_equals_two_of_one(rule, scene, contexts, guided_toy, one_sample):
    guidance = BOTH.map(lambda g: replace(g, rule=rule, skip_step=1))

    def run(states):
        denoise = GuidedDenoiser(guided_toy(), contexts, guidance, batch_passes=4)
        return euler(denoise, states, SIGMAS)

    both = run(scene)
    for k in (0, 1):
        one = run(scene.map(lambda s, k=k: one_sample(s, k)))
        torch.testing.assert_close(both.video.latent[k : k + 1], one.video.latent)
        torch.testing.assert_close(both.audio.latent[k : k + 1], one.audio.latent)


def test_a_frozen_stream_has_sigma_zero_and_comes_back_unchanged(scene, contexts, guided_toy):
    toy = guided_toy()
    states = Streams(scene.video, replace(scene.audio, frozen=True))
    out = GuidedDenoiser(toy, contexts)(states, 0.5, 0)
    video, audio, _ = toy.calls[0]
    assert audio.sigma.tolist() == [0.0, 0.0]
    assert audio.timesteps.abs().max() == 0
    assert audio.enabled
    assert video.sigma.tolist() == [0.5, 0.5]
    assert torch.equal(out.audio, states.audio.latent)


@pytest.mark.parametrize("present", ["video", "audio"])
def test_an_absent_stream_asks_for_nothing(present, scene, contexts, guided_toy):
    toy = guided_toy()
    states = Streams(**{present: getattr(scene, present)})
    guidance = Streams(video=FULL, audio=Guidance()) if present == "audio" else BOTH
    out = GuidedDenoiser(toy, contexts, guidance, predicts="x0")(states, 0.5, 0)
    absent = {"video": "audio", "audio": "video"}[present]
    assert getattr(out, absent) is None
    assert getattr(out, present).shape == getattr(states, present).latent.shape
    assert len(toy.calls) == (1 if present == "audio" else 4)


def test_no_guidance_is_one_pass_without_a_negative(scene, contexts, guided_toy):
    toy = guided_toy()
    out = GuidedDenoiser(toy, Contexts(contexts.positive))(scene, 0.5, 0)
    assert len(toy.calls) == 1
    assert out.uncond is None


def test_audio_without_guidance_takes_that_of_video(scene, contexts, guided_toy):
    def run(guidance):
        return GuidedDenoiser(guided_toy(), contexts, guidance, predicts="x0")(scene, 0.5, 0)

    assert torch.equal(run(Streams(FULL)).audio, run(Streams(FULL, FULL)).audio)


def test_guidance_by_noise_level(scene, contexts, guided_toy):
    toy = guided_toy()
    schedule = GuidanceSchedule({1.0: FULL, 0.5: Guidance()})
    denoise = GuidedDenoiser(toy, contexts, Streams(schedule), predicts="x0")
    denoise(scene, 0.9, 0)
    assert len(toy.calls) == 4
    denoise(scene, 0.5, 1)
    assert len(toy.calls) == 5


def test_a_stream_without_a_negative_uses_its_positive_context(scene, contexts, guided_toy):
    """Audio to video: both streams run in the unconditional pass, audio with its own text."""
    toy = guided_toy()
    own = Contexts(contexts.positive, Streams(video=contexts.negative.video))
    guidance = Streams(Guidance(cfg=3.0), Guidance())
    GuidedDenoiser(toy, own, guidance)(scene, 0.5, 0)
    video, audio, _ = toy.calls[1]
    assert torch.equal(video.context[:1], contexts.negative.video)
    assert torch.equal(audio.context[:1], contexts.positive.audio)
    with pytest.raises(MismatchError, match=r"audio cfg 7.0 needs a negative audio context"):
        GuidedDenoiser(toy, own, Streams(Guidance(), Guidance(cfg=7.0)))(scene, 0.5, 0)


def test_contexts_and_options_that_cannot_work_are_refused(scene, contexts, guided_toy):
    only_video = Contexts(Streams(video=contexts.positive.video))
    with pytest.raises(MismatchError, match="no audio context"):
        GuidedDenoiser(guided_toy(), only_video)(scene, 0.5, 0)
    with pytest.raises(MismatchError, match=r"CFG\+\+ needs a negative"):
        GuidedDenoiser(guided_toy(), Contexts(contexts.positive), force_uncond=True)(scene, 0.5, 0)
    with pytest.raises(MismatchError, match="batch_passes"):
        GuidedDenoiser(guided_toy(), contexts, batch_passes=0)


def test_a_forced_unconditional_pass_is_handed_on_but_changes_nothing(scene, contexts, guided_toy):
    toy = guided_toy()
    forced = GuidedDenoiser(toy, contexts, force_uncond=True, predicts="x0")(scene, 0.5, 0)
    plain = GuidedDenoiser(guided_toy(), contexts, predicts="x0")(scene, 0.5, 0)
    assert torch.equal(forced.video, plain.video)
    swapped = Contexts(contexts.negative)
    uncond = GuidedDenoiser(guided_toy(), swapped, predicts="x0")(scene, 0.5, 0)
    assert torch.equal(forced.uncond.video, uncond.video)
    assert torch.equal(forced.uncond.audio, uncond.audio)


def test_a_skipped_stream_is_disabled_and_keeps_its_guided_x0(scene, contexts, guided_toy):
    toy = guided_toy()
    guidance = Streams(Guidance(cfg=3.0, skip_step=1), Guidance(modality=3.0))
    denoise = GuidedDenoiser(toy, contexts, guidance, predicts="x0")
    first = denoise(scene, 0.9, 0)
    toy.calls.clear()
    moved = scene.map(lambda s: replace(s, latent=s.latent + 1))
    second = denoise(moved, 0.8, 1)
    assert second.video is first.video
    assert not torch.equal(second.audio, first.audio)
    assert len(toy.calls) == 2  # cond and isolated; only video asked for uncond
    assert [(v.enabled, a.enabled) for v, a, _ in toy.calls] == [(False, True)] * 2
    assert torch.equal(toy.calls[0][0].tokens, moved.video.latent)


def test_stateful_apg_remembers_one_average_per_stream(scene, contexts, guided_toy):
    rule = Apg(momentum=-0.5)
    guidance = Streams(Guidance(cfg=3.0, rule=rule), Guidance(cfg=5.0, rule=rule))
    denoise = GuidedDenoiser(guided_toy(), contexts, guidance, predicts="x0")
    first = denoise(scene, 0.9, 0)
    again = denoise(scene, 0.9, 1)
    assert not torch.equal(again.video, first.video)
    fresh = GuidedDenoiser(guided_toy(), contexts, guidance, predicts="x0")
    assert torch.equal(fresh(scene, 0.9, 0).video, first.video)


def test_the_same_inputs_give_the_same_result(scene, contexts, guided_toy):
    def run():
        return euler(GuidedDenoiser(guided_toy(), contexts, BOTH), scene, SIGMAS)

    assert torch.equal(run().video.latent, run().video.latent)
