"""Toy networks of the sampling fixtures, and the states and noise that the fixtures record."""

from dataclasses import replace

import pytest
import torch

from aiprod_engine.models.transformer.perturbations import plan_keep
from aiprod_engine.sampling.denoise import Contexts, GuidedDenoiser
from aiprod_engine.sampling.guidance import Guidance
from aiprod_engine.types import Streams, TokenState


def _mean(x):
    """Mean over tokens and channels of a sample, (B, 1, 1)."""
    return 0.0 if x is None else x.mean(dim=(1, 2), keepdim=True)


def _plain_toy(video, audio, perturbations):
    """x0 of the plain loops; `c` is the channel index."""
    x_v = video and video.tokens
    x_a = audio and audio.tokens
    out_v = out_a = None
    if video:
        c, sigma = torch.arange(x_v.shape[-1]), video.sigma[:, None, None]
        out_v = 0.6 * x_v + 0.25 * torch.sin(3 * x_v + 2 * video.timesteps + 0.1 * c)
        out_v = out_v + 0.15 * _mean(x_a) - 0.05 * sigma
    if audio:
        c = torch.arange(x_a.shape[-1])
        out_a = 0.5 * x_a + 0.3 * torch.cos(2 * x_a - audio.timesteps + 0.2 * c)
        out_a = out_a + 0.1 * _mean(x_v)
    return out_v, out_a


class GuidedToy:
    """x0 of the guided loops; counts the passes of every sample it is given."""

    def __init__(self, blocks=4):
        self.blocks = blocks
        self.passes = 0
        self.calls = []

    def __call__(self, video, audio, perturbations):
        self.passes += len(perturbations)
        self.calls.append((video, audio, perturbations))
        x_v, x_a = video and video.tokens, audio and audio.tokens
        keep = self._kept(perturbations, x_v if video else x_a)
        out_v = out_a = None
        if video:
            wave = torch.sin(3 * x_v + 2 * video.timesteps)
            out_v = 0.6 * x_v + 0.25 * keep["video_self"] * wave
            out_v = out_v + 0.2 * _mean(video.context) + 0.15 * keep["a2v"] * _mean(x_a)
        if audio:
            wave = torch.cos(2 * x_a - audio.timesteps)
            out_a = 0.5 * x_a + 0.3 * keep["audio_self"] * wave
            out_a = out_a + 0.25 * _mean(audio.context) + 0.1 * keep["v2a"] * _mean(x_v)
        return out_v, out_a

    def _kept(self, perturbations, like):
        """Fraction of the blocks that keep each attention, (B, 1, 1)."""
        plan = plan_keep(perturbations, self.blocks, like)
        ones = torch.ones(len(like), 1, 1)
        names = ("video_self", "audio_self", "a2v", "v2a")
        return {n: sum(getattr(block, n) * ones for block in plan) / self.blocks for n in names}


def _state(latent, clean, mask, **fields):
    positions = torch.zeros(len(latent), 1, latent.shape[1], 2)
    return TokenState(latent, mask, clean, positions, latent.shape[1], **fields)


def _states(case, **audio_fields):
    i = case.inputs
    return Streams(
        video=_state(i["video"], i["video_clean"], i["video_mask"]),
        audio=_state(i["audio"], i["audio_clean"], i["audio_mask"], **audio_fields),
    )


def _contexts(case):
    i = case.inputs
    return Contexts(
        positive=Streams(video=i["ctx_video"], audio=i["ctx_audio"]),
        negative=Streams(video=i["ctx_video_neg"], audio=i["ctx_audio_neg"]),
    )


def _guidance(case):
    def one(p):
        names = {"cfg": "cfg_scale", "stg": "stg_scale", "rescale": "rescale_scale"}
        names |= {"modality": "modality_scale", "skip_step": "skip_step"}
        fields = {ours: p[theirs] for ours, theirs in names.items()}
        return Guidance(**fields, stg_blocks=tuple(p["stg_blocks"]))

    return Streams(video=one(case.call["video_params"]), audio=one(case.call["audio_params"]))


class InjectedNoise:
    """Serves recorded noise by (stream, purpose) and lists the draws in their order."""

    def __init__(self, recorded):
        self.recorded = recorded
        self.draws = []

    def __call__(self, shape, stream, purpose):
        self.draws.append((stream, purpose))
        noise = self.recorded[stream, purpose]
        assert tuple(noise.shape) == tuple(shape)
        return noise


@pytest.fixture
def plain_toy():
    return _plain_toy


@pytest.fixture
def guided_toy():
    return GuidedToy


@pytest.fixture
def token_state():
    return _state


@pytest.fixture
def states_of():
    return _states


@pytest.fixture
def contexts_of():
    return _contexts


@pytest.fixture
def guidance_of():
    return _guidance


@pytest.fixture
def injected_noise():
    return InjectedNoise


@pytest.fixture
def toy_denoiser():
    """Build the denoiser of the plain loops; the toy ignores the context."""

    def build(**options):
        nothing = torch.zeros(1, 1, 1)
        contexts = Contexts(Streams(nothing, nothing), options.pop("negative", None))
        return GuidedDenoiser(_plain_toy, contexts, predicts="x0", **options)

    return build


@pytest.fixture
def one_sample():
    """Select one sample of every tensor of a state."""

    def select(state, index):
        tensors = {k: v[index : index + 1] for k, v in vars(state).items() if torch.is_tensor(v)}
        return replace(state, **tensors)

    return select
