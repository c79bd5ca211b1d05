"""Tiny networks of every release, filled with random weights, and inputs for them."""

import gzip
import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from goldens import Case
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aiprod_engine.models.text.gemma3 import Gemma3, Gemma3Config
from aiprod_engine.models.text.gemma4 import Gemma4, Gemma4Config
from aiprod_engine.models.transformer import Transformer, TransformerConfig
from aiprod_engine.types import Modality

TESTS = Path(__file__).parents[2]

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
    """Random inputs of one stream."""
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
def make_inputs():
    def inputs(config, video=12, audio=5, context=7):
        return (
            _stream(config.video, video, context, config),
            _stream(config.audio, audio, context, config),
        )

    return inputs


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of storages that operators made and that are still alive.

    What an operator allocates and frees inside, and what existed before, does not count.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        given = {id(t.untyped_storage()) for t in _tensors((args, kwargs))}
        result = operator(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage not in self._known and id(storage) not in given:
                self._known.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _freed(self, count):
        self.live -= count


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.fixture
def peak_bytes():
    """`peak_bytes(function)`: most bytes alive at once while it runs, without its inputs."""

    def measure(function):
        with torch.inference_mode(), LiveStorages() as count:
            function()
        return count.peak

    return measure


@pytest.fixture
def manifests():
    """`manifests(name, ...)`: checkpoint key -> shape of full-size files, tensors only."""

    def read(*names):
        paths = (TESTS / f"manifests/{name}.json.gz" for name in names)
        tables = [json.loads(gzip.decompress(path.read_bytes())) for path in paths]
        return {k: s for table in tables for k, s in table.items() if min(s, default=0) >= 0}

    return read
