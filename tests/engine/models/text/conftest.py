"""Building blocks of the text tests."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TESTS = Path(__file__).parents[3]


@pytest.fixture
def build():
    """`build(module class, config, weights)`: made on the meta device, loaded strictly."""

    def make(module, config, weights):
        with torch.device("meta"):
            model = module(config)
        model.load_state_dict(weights, strict=True, assign=True)
        return model.eval().requires_grad_(False)

    return make


@pytest.fixture
def read_files():
    """`read_files(paths below the text fixtures)`: all tensors of those files."""

    def read(*paths):
        return {k: v for p in paths for k, v in load_file(TESTS / "golden/text" / p).items()}

    return read


@pytest.fixture
def manifest():
    """`manifest(name)`: checkpoint key -> shape of a full-size file."""

    def read(name):
        return json.loads(gzip.decompress((TESTS / f"manifests/{name}.json.gz").read_bytes()))

    return read


@pytest.fixture
def strip():
    """`strip(tensors, prefix)`: those below the prefix, without it."""

    def below(tensors, prefix):
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    return below


@pytest.fixture
def connector_part():
    """`connector_part(tensors)`: what belongs to the text connector, under its module names."""

    def select(tensors):
        names = {k: k.removeprefix("model.diffusion_model.") for k in tensors}
        mine = ("text_embedding_projection.", "video_embeddings_", "audio_embeddings_")
        return {names[k]: v for k, v in tensors.items() if names[k].startswith(mine)}

    return select
