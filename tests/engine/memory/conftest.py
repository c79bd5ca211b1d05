"""Tiny networks of every release, filled with random weights, and inputs for them."""

from dataclasses import replace

import pytest
import torch
from goldens import Case

from aiprod_engine.models.text.gemma3 import Gemma3, Gemma3Config
from aiprod_engine.models.text.gemma4 import Gemma4, Gemma4Config
from aiprod_engine.models.transformer import Transformer, TransformerConfig
from aiprod_engine.types import Modality

TRANSFORMERS = {
    "2.0": "transformer/full_v20_uniform",
    "2.3": "transformer/full_v23_uniform",
    "2.5": "transformer/full_v25_uniform",
}
DECODERS = {
    "gemma3": (Gemma3, Gemma3Config, "text/gemma3_tiny"),
    "gemma4": (Gemma4, Gemma4Config, "text/gemma4_tiny"),
}


def _filled(module):
    """Every tensor random, as loading would leave it."""
    state = {k: torch.randn(v.shape) * 0.05 for k, v in module.state_dict().items()}
    module.load_state_dict(state, assign=True, strict=True)
    return module.eval().requires_grad_(False)


def _transformer(version, layers=8, **changes):
    config = TransformerConfig.from_metadata(Case(TRANSFORMERS[version]).config["transformer"])
    with torch.device("meta"):
        module = Transformer(replace(config, num_layers=layers, **changes))
    return _filled(module)


def _decoder(family):
    module, config, name = DECODERS[family]
    case = Case(name)
    with torch.device("meta"):
        decoder = module(config.from_metadata(case.config.get("gemma", case.config)))
    return _filled(decoder)


def _stream(stream, tokens, context, config, batch=1):
    """Random inputs of one stream, on the meta device if that is the default one."""
    axes = len(stream.max_pos)
    starts = torch.rand(batch, axes, tokens, 1)
    width = stream.dim if config.caption_proj_before_connector else config.caption_channels
    return Modality(
        tokens=torch.randn(batch, tokens, stream.in_channels),
        sigma=torch.full((batch,), 0.7),
        timesteps=torch.full((batch, tokens, 1), 0.7),
        positions=torch.cat([starts, starts + 0.1], dim=-1),
        context=torch.randn(batch, context, width),
    )


@pytest.fixture
def make_transformer():
    return _transformer


@pytest.fixture
def make_decoder():
    return _decoder


@pytest.fixture
def make_filled():
    return _filled


@pytest.fixture
def make_stream():
    return _stream


@pytest.fixture
def make_inputs():
    def inputs(config, video=12, audio=5, context=7):
        return (
            _stream(config.video, video, context, config),
            _stream(config.audio, audio, context, config),
        )

    return inputs
