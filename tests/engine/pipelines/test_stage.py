"""One sampling stage: what it starts from, how it samples, what it leaves."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from aiprod_engine.errors import MismatchError, OutOfMemory
from aiprod_engine.latents.conditioning import KeyframeIndex, LatentIndex
from aiprod_engine.latents.regions import MaskItem
from aiprod_engine.memory.placed import Placed
from aiprod_engine.memory.plan import Need
from aiprod_engine.pipelines.forward import SamplingWay
from aiprod_engine.pipelines.samplers import SAMPLERS, Noise
from aiprod_engine.pipelines.stage import Stage, Start, at_depth, initial_states, run_stage
from aiprod_engine.sampling.guidance import Guidance, GuidanceSchedule
from aiprod_engine.types import AVLatent, Streams

SIGMAS = torch.tensor([1.0, 0.7, 0.3, 0.0])
FULL = Guidance(cfg=3.0, stg=1.0, stg_blocks=(1,), rescale=0.7, modality=2.0)


def latent(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_deterministic_and_follows_its_seed(sampler, transformer, contexts, small):
    stage = Stage(contexts, SIGMAS, sampler=sampler)
    one, same, other = (
        run_stage(transformer, Start(small), stage, Noise.seeded(seed)) for seed in (1, 1, 2)
    )
    assert one.video.shape == (1, 8, 2, 2, 3)
    assert one.audio.shape == (1, 1, 9, 16)
    assert torch.equal(one.video, same.video)
    assert torch.equal(one.audio, same.audio)
    assert not torch.allclose(one.video, other.video)


def test_unknown_sampler_is_refused(contexts):
    with pytest.raises(MismatchError, match="sampler must be one of euler"):
        Stage(contexts, SIGMAS, sampler="dpm")


def test_batched_passes_equal_sequential_ones(transformer, contexts, small):
    stages = [
        Stage(contexts, SIGMAS, Streams(FULL, FULL), batch_passes=count) for count in (1, 2, 4)
    ]
    results = [run_stage(transformer, Start(small), s, Noise.seeded(1)) for s in stages]
    for result in results[1:]:
        torch.testing.assert_close(result.video, results[0].video, atol=2e-5, rtol=0)
        torch.testing.assert_close(result.audio, results[0].audio, atol=2e-5, rtol=0)


class Watched:
    """A transformer that notes the shapes of the timesteps it gets."""

    def __init__(self, model):
        self.model, self.config, self.seen = model, model.config, []
        self.get_submodule = model.get_submodule

    def __call__(self, video, audio, *rest):
        self.seen.append((video.timesteps.shape[1], audio.timesteps.shape[1]))
        return self.model(video, audio, *rest)


def test_every_noise_level_is_passed_once(transformer, contexts, small):
    stage = Stage(contexts, SIGMAS)
    plain = Watched(transformer)
    one = run_stage(plain, Start(small), stage, Noise.seeded(1))
    assert set(plain.seen) == {(1, 1)}

    image = LatentIndex(latent(5, 1, 8, 1, 2, 3), strength=0.7)
    conditioned = Watched(transformer)
    run_stage(conditioned, Start(small, (image,)), stage, Noise.seeded(1))
    assert set(conditioned.seen) == {(2, 1)}

    # strength 0 leaves every token at the schedule's sigma, but the token count differs
    appended = Watched(transformer)
    free = KeyframeIndex(latent(5, 1, 8, 1, 2, 3), 4, strength=0.0)
    run_stage(appended, Start(small, (free,)), stage, Noise.seeded(1))
    assert set(appended.seen) == {(1, 1)}
    assert one.video.isfinite().all()

    every = torch.linspace(0, 1, 12).view(1, 2, 2, 3)  # more levels than are worth it
    masked = Watched(transformer)
    mask = MaskItem(latent(5, 1, 8, 2, 2, 3), every)
    run_stage(masked, Start(small, (mask,)), stage, Noise.seeded(1))
    assert set(masked.seen) == {(12, 1)}


@pytest.mark.parametrize("strength", [None, 0.7])
@pytest.mark.parametrize("batch_passes", [1, 4])
def test_levels_equal_a_timestep_per_token(strength, batch_passes, transformer, contexts, small):
    stage = Stage(contexts, SIGMAS, Streams(FULL, FULL), batch_passes=batch_passes)
    given = () if strength is None else (LatentIndex(latent(5, 1, 8, 1, 2, 3), 0, strength),)
    start = Start(small, given)

    def each_token(side):
        rows, tokens = side.tokens.shape[:2]
        levels = side.levels
        if levels is None:
            levels = torch.zeros(rows, tokens, dtype=torch.int64)
        return replace(side, timesteps=side.timesteps.gather(1, levels[..., None]), levels=None)

    def spread(video, audio, *rest):
        return transformer(each_token(video), each_token(audio), *rest)

    spread.config, spread.get_submodule = transformer.config, transformer.get_submodule
    levels = run_stage(transformer, start, stage, Noise.seeded(1))
    each = run_stage(spread, start, stage, Noise.seeded(1))
    torch.testing.assert_close(levels.video, each.video, atol=2e-5, rtol=0)
    torch.testing.assert_close(levels.audio, each.audio, atol=2e-5, rtol=0)


# Where memory ends -------------------------------------------------------------------------------

WAYS = tuple(
    SamplingWay(f"{passes} at once, {parts} parts", size, 4 // passes, passes, parts)
    for size, (passes, parts) in zip(
        (60, 50, 40, 30, 20, 10), product((4, 2, 1), (1, 4)), strict=True
    )
)


class Failing:
    """A transformer that runs out of memory with too many samples, or feed-forwards too large."""

    def __init__(self, model, most, least_parts=1):
        self.model, self.config, self.get_submodule = model, model.config, model.get_submodule
        self.most, self.least_parts, self.seen = most, least_parts, []

    def __call__(self, video, audio, perturbations, on_block, parts=1):
        self.seen.append((len(perturbations), parts))
        if len(perturbations) > self.most or parts < self.least_parts:
            raise torch.cuda.OutOfMemoryError
        return self.model(video, audio, perturbations, on_block, parts)


def placed_in(*ways):
    return Placed(Need("sample", (), ways), [])


@pytest.mark.parametrize(
    ("most", "parts", "found"), [(4, 1, (4, 1)), (4, 4, (4, 4)), (2, 1, (2, 1)), (1, 4, (1, 4))]
)
def test_a_stage_falls_back_to_the_first_way_that_runs(
    most, parts, found, transformer, contexts, small, caplog
):
    stage = Stage(contexts, SIGMAS, Streams(FULL, FULL), batch_passes=4)
    expected = run_stage(transformer, Start(small), stage, Noise.seeded(1))
    model, placed = Failing(transformer, most, parts), placed_in(*WAYS)
    done = run_stage(model, Start(small), stage, Noise.seeded(1), placed=placed)
    torch.testing.assert_close(done.video, expected.video, atol=2e-5, rtol=0)
    torch.testing.assert_close(done.audio, expected.audio, atol=2e-5, rtol=0)
    assert (placed.way.passes, placed.way.parts) == found
    failed = [seen for seen in model.seen if seen[0] > most or seen[1] < parts]
    assert len(failed) == WAYS.index(placed.way)  # it does not try again what did not work
    assert model.seen[-1] == found
    if failed:
        assert f"sample ran out of memory; going on with {placed.way.name}" in caplog.text


def test_a_stage_that_no_way_helps_says_so(transformer, contexts, small):
    stage = Stage(contexts, SIGMAS, Streams(FULL, FULL), batch_passes=4)
    with pytest.raises(
        OutOfMemory, match=r"^sample must fit into memory: it needs .*; lower width"
    ):
        run_stage(Failing(transformer, 0), Start(small), stage, Noise.seeded(1),
                  placed=placed_in(*WAYS))  # fmt: skip


def test_refining_starts_from_the_given_latents(transformer, contexts, small):
    given = replace(small, video=latent(1, 1, 8, 2, 2, 3), audio=latent(2, 1, 1, 9, 16))
    told = {}
    stage = Stage(contexts, torch.tensor([0.5, 0.0]), noise_scale=0.5)
    run_stage(transformer, Start(given), stage, Noise.seeded(1), told.__setitem__)
    noise = Noise.seeded(1).initial((1, 12, 8), "video", "initial")
    wanted = 0.5 * given.video.flatten(2).transpose(1, 2) + 0.5 * noise
    torch.testing.assert_close(told["states"].video.latent, wanted)


def test_a_frozen_stream_comes_back_unchanged_and_must_be_given(transformer, contexts, small):
    given = replace(small, audio=latent(2, 1, 1, 9, 16))
    stage = Stage(contexts, SIGMAS)
    start = Start(given, frozen=frozenset({"audio"}))
    assert torch.equal(run_stage(transformer, start, stage, Noise.seeded(1)).audio, given.audio)
    with pytest.raises(MismatchError, match="frozen audio"):
        run_stage(transformer, replace(start, latent=small), stage, Noise.seeded(1))


@pytest.mark.parametrize("stream", ["video", "audio"])
def test_a_single_stream_can_be_sampled(stream, transformer, contexts, small):
    stage = Stage(contexts, SIGMAS)
    only = replace(small, modalities=stream)
    done = run_stage(transformer, Start(only), stage, Noise.seeded(1))
    assert getattr(done, stream) is not None
    assert done.video is None or done.audio is None


def test_a_latent_without_a_common_stream_is_refused(transformer, small):
    config = replace(transformer.config, modalities="video")
    with pytest.raises(MismatchError, match="asks for audio"):
        initial_states(config, Start(replace(small, modalities="audio")))


def test_inputs_are_left_alone(transformer, contexts, small):
    given = replace(small, video=latent(1, 1, 8, 2, 2, 3), audio=latent(2, 1, 1, 9, 16))
    before = given.video.clone(), given.audio.clone()
    run_stage(transformer, Start(given), Stage(contexts, SIGMAS), Noise.seeded(1))
    assert torch.equal(given.video, before[0])
    assert torch.equal(given.audio, before[1])


def test_on_block_may_cancel(transformer, contexts, small):
    def cancel(index):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(
            transformer, Start(small), Stage(contexts, SIGMAS), Noise.seeded(1), on_block=cancel
        )


def test_guidance_blocks_move_to_the_depth_of_a_shallow_transformer():
    guidance = Streams(
        Guidance(stg_blocks=(28, 1)), GuidanceSchedule({1.0: Guidance(stg_blocks=None)})
    )
    placed = at_depth(guidance, 3)
    assert placed.video.stg_blocks == (1, 1)
    assert placed.audio.at(0.5).stg_blocks is None
    assert at_depth(guidance, 48).video.stg_blocks == (28, 1)


def test_sizes_come_from_the_latent_alone(transformer, contexts):
    clip = AVLatent(None, None, 17, 32, 64, 50.0)
    done = run_stage(transformer, Start(clip), Stage(contexts, SIGMAS), Noise.seeded(1))
    assert done.video.shape == (1, 8, 3, 1, 2)
    assert done.audio.shape == (1, 1, 8, 16)  # round(17 / 50 * 25)
