"""Prompt -> text contexts, in two visits so that Gemma and the connectors are never both resident.

Only the valid tokens of a prompt run through Gemma: positions are relative there, so the padded
form of the reference gives the same states to rounding at some twenty times the work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..models.text.connector import TextConnector
from ..models.text.decoder import TextDecoder
from ..models.text.tokenizer import MAX_LENGTH, Tokenizer
from ..types import TextContext
from .networks import Networks
from .planning import connector_need, prompt_need

logger = logging.getLogger(__name__)


def encode_prompts(networks: Networks, texts: Sequence[str]) -> list[TextContext]:
    """Block P: contexts of all prompts in one visit to Gemma and one to the connectors."""
    tokenizer, recipe = networks.tokenizer(), networks.recipe("text_encoder")
    with networks.place(prompt_need(recipe, len(texts)), recipe) as placed:
        states = placed.run(lambda encoder: [hidden_states(tokenizer, encoder, t) for t in texts])
    recipe, version = networks.recipe("text_connector"), networks.version
    with networks.place(connector_need(recipe, len(texts)), recipe) as placed:
        return placed.run(lambda connector: [contexts(connector, s, version) for s in states])


@torch.inference_mode()
def hidden_states(
    tokenizer: Tokenizer,
    encoder: TextDecoder,
    text: str,
    on_layer: Callable[[], None] = lambda: None,
) -> tuple[Tensor, ...]:
    """All hidden states of a prompt, each (1, n, D), n its valid tokens, on the encoder's device.

    A prompt beyond `MAX_LENGTH` tokens keeps its head; the loss is logged. `on_layer` runs before
    every layer and may raise to cancel.
    """
    total = tokenizer.count(text)
    if total > MAX_LENGTH:
        logger.warning("the prompt has %d tokens, only the first %d are read", total, MAX_LENGTH)
    ids, mask = tokenizer.encode(text, MAX_LENGTH)
    count = int(mask.sum())
    device = encoder.norm.weight.device
    ids, mask = ids[:, -count:].to(device), mask[:, -count:].to(device)
    states = []
    for state in encoder(ids, mask):
        on_layer()
        states.append(state)
    return tuple(states)


@torch.inference_mode()
def contexts(connector: TextConnector, states: Sequence[Tensor], version: str) -> TextContext:
    """Video and audio contexts (1, 1024, width) of a prompt's hidden states, on the CPU."""
    device = connector.video_embeddings_connector.learnable_registers.device
    mask = torch.ones(states[0].shape[:2], dtype=torch.int64, device=device)
    on_device = (state.to(device) for state in states)
    video, audio, _ = connector.encode(on_device, mask, MAX_LENGTH)
    return TextContext(video.cpu(), audio.cpu(), version)
