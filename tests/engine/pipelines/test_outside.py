"""A sampler that carries latents only gives what the engine's own loop gives."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from aiprod_engine.errors import NonFiniteError
from aiprod_engine.latents.conditioning import KeyframeIndex, LatentIndex
from aiprod_engine.latents.patchify import unpatchify_audio, unpatchify_video
from aiprod_engine.pipelines.outside import OutsideDenoiser, carried
from aiprod_engine.pipelines.samplers import Noise
from aiprod_engine.pipelines.stage import Stage, Start, run_stage
from aiprod_engine.sampling.guidance import Apg, Guidance
from aiprod_engine.sampling.noise import CpuNoise
from aiprod_engine.types import Streams

SIGMAS = torch.tensor([1.0, 0.7, 0.3, 0.0])
FULL = Guidance(cfg=3.0, stg=1.0, stg_blocks=(1,), rescale=0.7, modality=2.0)
SEED = 4


def latent(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image(strength=1.0):
    return LatentIndex(latent(5, 1, 8, 1, 2, 3), 0, strength)


def keyframe(strength=1.0):
    return KeyframeIndex(latent(6, 1, 8, 1, 2, 3), 8, strength, clip_frames=1)


def noise_of(latents, appended):
    """What `CpuNoise` draws for a run, on the grid."""
    draw, (_, channels, *size) = CpuNoise(SEED), latents.video.shape
    cells = size[0] * size[1] * size[2]
    video = draw((1, cells + appended, channels), "video", "")[:, :cells]
    _, channels, count, bins = latents.audio.shape
    audio = draw((1, count, channels * bins), "audio", "")
    return Streams(unpatchify_video(video, *size), unpatchify_audio(audio, channels, bins))


def foreign_euler(transformer, start, stage, appended=0):
    """Euler by a sampler that knows latents and masks: kept places are seen clean, then blended."""
    latents, masks = carried(transformer.config, start)
    denoise = OutsideDenoiser(transformer, start, stage, CpuNoise(SEED), masks=masks)

    def blend(x, clean, mask):
        return x * mask + clean * (1 - mask)

    x = noise_of(latents, appended)
    for step, (sigma, lower) in enumerate(pairwise(SIGMAS.tolist())):
        seen = x.map(blend, latents, masks)
        x0 = denoise(seen, sigma, step).map(blend, latents, masks)
        x = x.map(lambda a, b, s=sigma, n=lower: a + (a - b) / s * (n - s), x0)
    return x


@pytest.mark.parametrize(
    ("items", "appended"),
    [((), 0), ((image(),), 0), ((keyframe(),), 6), ((image(), keyframe()), 6)],
)
@pytest.mark.parametrize("guidance", [Guidance(), FULL, replace(FULL, skip_step=1)])
def test_foreign_euler_is_euler(guidance, items, appended, transformer, contexts, small):
    start, stage = Start(small, items), Stage(contexts, SIGMAS, Streams(guidance, guidance))
    found = foreign_euler(transformer, start, stage, appended)
    expected = run_stage(transformer, start, stage, Noise.seeded(SEED))
    torch.testing.assert_close(found.video, expected.video, atol=2e-5, rtol=0)
    torch.testing.assert_close(found.audio, expected.audio, atol=2e-5, rtol=0)


def test_momentum_lives_in_one_run(transformer, contexts, small):
    guidance = Guidance(cfg=2.0, rule=Apg(0.0, 5.0, -0.5))
    stage = Stage(contexts, SIGMAS, Streams(guidance, guidance))
    one, same = (foreign_euler(transformer, Start(small), stage) for _ in range(2))
    expected = run_stage(transformer, Start(small), stage, Noise.seeded(SEED))
    assert torch.equal(one.video, same.video)
    torch.testing.assert_close(one.video, expected.video, atol=2e-5, rtol=0)


def test_carried_content_and_masks(transformer, small):
    given = replace(small, video=latent(7, 1, 8, 2, 2, 3), audio=latent(8, 1, 1, 9, 16))
    latents, masks = carried(transformer.config, Start(given, (image(0.75), keyframe())))
    assert torch.equal(latents.video[:, :, :1], image().latent)
    assert torch.equal(latents.video[:, :, 1:], given.video[:, :, 1:])
    assert torch.equal(latents.audio, given.audio)
    assert masks.video.shape == (1, 1, 2, 2, 3)
    assert masks.audio.shape == (1, 1, 9, 1)
    assert masks.video[0, 0, :, 0, 0].tolist() == [0.25, 1.0]
    assert bool((masks.audio == 1).all())


class Seen:
    """A transformer that keeps the video tokens and timesteps it gets."""

    def __init__(self, model):
        self.model, self.config = model, model.config
        self.get_submodule = model.get_submodule

    def __call__(self, video, audio, *rest):
        self.video, self.audio = video, audio
        return self.model(video, audio, *rest)


def test_appended_tokens_are_as_noisy_as_their_strength_leaves(transformer, contexts, small):
    seen, start = Seen(transformer), Start(small, (keyframe(0.75),))
    latents, _ = carried(transformer.config, start)
    denoise = OutsideDenoiser(seen, start, Stage(contexts, SIGMAS), CpuNoise(SEED))
    denoise(latents, 0.8, 0)
    clean = keyframe().latent.flatten(2).transpose(1, 2)
    noise = CpuNoise(SEED)((1, 18, 8), "video", "")[:, 12:]
    torch.testing.assert_close(seen.video.tokens[:, 12:], 0.8 * clean + 0.2 * noise)
    timesteps = seen.video.timesteps[0, seen.video.levels[0], 0]
    torch.testing.assert_close(timesteps[11:13], torch.tensor([0.8, 0.2]))


def test_a_frozen_stream_stays_whatever_is_carried(transformer, contexts, small):
    sound = latent(8, 1, 1, 9, 16)
    start = Start(replace(small, audio=sound), frozen=frozenset({"audio"}))
    latents, masks = carried(transformer.config, start)
    assert torch.equal(latents.audio, sound)
    assert not masks.audio.any()
    seen = Seen(transformer)
    denoise = OutsideDenoiser(seen, start, Stage(contexts, SIGMAS), CpuNoise(SEED))
    prediction = denoise(Streams(latents.video, torch.ones_like(sound)), 0.9, 0)
    assert torch.equal(prediction.audio, sound)
    assert not seen.audio.timesteps.any()


def test_the_unconditional_pass_runs_on_demand(transformer, contexts, small):
    latents, _ = carried(transformer.config, Start(small))
    denoise = OutsideDenoiser(transformer, Start(small), Stage(contexts, SIGMAS), CpuNoise(SEED))
    assert denoise(latents, 0.9, 0).uncond is None
    prediction = denoise(latents, 0.8, 1, needs_uncond=True)
    assert prediction.uncond.video.shape == latents.video.shape
    assert not torch.equal(prediction.uncond.video, prediction.video)


def test_what_is_not_finite_ends_the_run(transformer, contexts, small):
    latents, _ = carried(transformer.config, Start(small))
    denoise = OutsideDenoiser(transformer, Start(small), Stage(contexts, SIGMAS), CpuNoise(SEED))
    with pytest.raises(NonFiniteError, match="after step 3"):
        denoise(Streams(latents.video * torch.nan, latents.audio), 0.5, 2)
