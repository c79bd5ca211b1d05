"""Builds diffusion decoders the way the loader does: on meta, strictly, by assignment."""

import copy

import pytest
import torch
from goldens import Case

from aiprod_engine.models.diffusion_vae import DiffusionDecoder, DiffusionDecoderConfig
from aiprod_engine.weights.presets import preset


@pytest.fixture
def published():
    """The `vae` section of the published file."""
    return preset("vae_diffusion", "2.5")


@pytest.fixture
def skeleton():
    """skeleton(section): the decoder without weights."""

    def make(section):
        with torch.device("meta"):
            return DiffusionDecoder(DiffusionDecoderConfig.from_metadata(section))

    return make


@pytest.fixture
def recorded(skeleton):
    """recorded(case, **decoder_keys): the decoder of a fixture in float32, a copy of its weights.

    `weights` replaces them.
    """

    def make(case, weights=None, **changes):
        section = copy.deepcopy(case.config["vae"])
        section["decoder"] |= changes
        decoder = skeleton(section)
        weights = case.weights if weights is None else weights
        ignored = case.call["ignored_keys"]
        state = {
            key.removeprefix("decoder."): value.clone()
            for key, value in weights.items()
            if key not in ignored
        }
        decoder.load_state_dict(state, strict=True, assign=True)
        return decoder.eval().requires_grad_(False)

    return make


@pytest.fixture
def decoder(recorded):
    """The recorded decoder."""
    return recorded(Case("video_vae/diffvae_decoder_25"))
