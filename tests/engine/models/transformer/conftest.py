"""Builds the network and its inputs from a fixture."""

from dataclasses import replace

import pytest
import torch

from aiprod_engine.models.transformer import Transformer, TransformerConfig
from aiprod_engine.types import Modality

PREFIX = "model.diffusion_model."
CONNECTORS = ("video_embeddings_connector.", "audio_embeddings_connector.")


def _module(factory, weights, prefix, dtype=torch.float32):
    """`factory()` on the meta device, then strictly filled with the weights under `prefix`."""
    with torch.device("meta"):
        module = factory()
    own = {k[len(prefix) :]: v.to(dtype) for k, v in weights.items() if k.startswith(prefix)}
    module.load_state_dict(own, assign=True, strict=True)
    return module.eval().requires_grad_(False)


def _transformer(case, dtype=torch.float32, weights=None, modalities=None):
    """The fixture's network; text connectors under the same prefix are not part of it."""
    weights = case.weights if weights is None else weights
    own = {
        k: v for k, v in weights.items() if not k.startswith(tuple(PREFIX + c for c in CONNECTORS))
    }
    config = TransformerConfig.from_metadata(case.config["transformer"])
    modalities = modalities or case.call.get("model_type", "av")
    return _module(lambda: Transformer(config, modalities), own, PREFIX, dtype)


def _modality(tensors, dtype=torch.float32, enabled=True):
    """Fixture tensors of one stream as a Modality, or None where there are none."""
    if not tensors:
        return None
    fields = dict(tensors)
    fields["tokens"] = fields.pop("latent").to(dtype)
    fields["context"] = fields["context"].to(dtype)
    return Modality(**fields, enabled=enabled)


def _streams(case, dtype=torch.float32):
    return tuple(
        _modality(case.group(f"in.{s}."), dtype, case.call.get(f"{s}_enabled", True))
        for s in ("video", "audio")
    )


def _select(modality, index):
    """One sample of a batch."""
    return replace(
        modality,
        **{k: v[index : index + 1] for k, v in vars(modality).items() if torch.is_tensor(v)},
    )


@pytest.fixture
def load_module():
    return _module


@pytest.fixture
def load_transformer():
    return _transformer


@pytest.fixture
def as_modality():
    return _modality


@pytest.fixture
def streams_of():
    return _streams


@pytest.fixture
def one_sample():
    return _select
