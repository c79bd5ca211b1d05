"""Builds the audio parts of a fixture the way the loader does: on meta, strictly, by assignment."""

import copy

import pytest
import torch

from aiprod_engine.models.audio_vae.config import AudioVAEConfig, VocoderConfig
from aiprod_engine.models.audio_vae.decoder import AudioDecoder
from aiprod_engine.models.audio_vae.encoder import AudioEncoder
from aiprod_engine.models.audio_vae.vocoder import vocoder_for

UNUSED = "mel_stft.stft_fn.inverse_basis"


def _state(part, weights):
    if part == "vocoder":
        state = {k[8:]: v for k, v in weights.items() if k.startswith("vocoder.")}
        state.pop(UNUSED, None)
        return state
    own = f"audio_vae.{part}."
    state = {k[len(own) :]: v for k, v in weights.items() if k.startswith(own)}
    shared = "audio_vae.per_channel_statistics."
    return state | {k[10:]: v for k, v in weights.items() if k.startswith(shared)}


def _module(part, config):
    with torch.device("meta"):
        if part == "vocoder":
            return vocoder_for(VocoderConfig.from_metadata(config["vocoder"]))
        vae = AudioVAEConfig.from_metadata(config["audio_vae"])
        return AudioEncoder(vae) if part == "encoder" else AudioDecoder(vae)


@pytest.fixture
def build():
    """build(part, config, weights): part is encoder, decoder or vocoder; weights by file key."""

    def make(part, config, weights):
        module = _module(part, config)
        state = {k: v.float() for k, v in copy.deepcopy(_state(part, weights)).items()}
        module.load_state_dict(state, strict=True, assign=True)
        return module.eval().requires_grad_(False)

    return make


@pytest.fixture
def on_meta():
    """on_meta(part, config): the module without weights."""
    return _module


@pytest.fixture
def idle():
    """idle(module, x): names of the parameters and buffers that the output does not depend on."""

    def find(module, x):
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        for tensor in tensors.values():
            tensor.requires_grad_(True)
        module(x).square().sum().backward()
        return [name for name, t in tensors.items() if t.grad is None or not t.grad.any()]

    return find
