"""The numbers of a file that another file must match, from its shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..shapes import Shapes, count


def facts(rooms: Mapping[str, Shapes]) -> dict[str, Any]:
    """What `check_fit` compares, by name; only what the shapes show."""
    found: dict[str, Any] = {}
    for room, read in _READ.items():
        if room in rooms:
            found |= read(rooms[room])
    return {name: value for name, value in found.items() if value is not None}


def _axis(shapes: Shapes, name: str, axis: int) -> int | None:
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else None


def _transformer(shapes: Shapes) -> dict[str, Any]:
    inside = _axis(shapes, "caption_projection.linear_1.weight", 1)  # 2.0
    context = _axis(shapes, "transformer_blocks.0.attn2.to_k.weight", 1)
    return {
        "in_channels": _axis(shapes, "patchify_proj.weight", 1),
        "context_width": inside or context,
    }


def _connectors(shapes: Shapes) -> dict[str, Any]:
    return {"connector_width": _axis(shapes, "video_embeddings_connector.learnable_registers", 1)}


def _projection(shapes: Shapes) -> dict[str, Any]:
    names = (f"text_embedding_projection.{n}aggregate_embed.weight" for n in ("", "video_"))
    name = next((name for name in names if name in shapes), "")
    return {
        "projection_width": _axis(shapes, name, 0),
        "projection_inputs": _axis(shapes, name, 1),
    }


def _video_vae(shapes: Shapes) -> dict[str, Any]:
    return {"latent_channels": _axis(shapes, "per_channel_statistics.mean-of-means", 0)}


def _gemma(shapes: Shapes) -> dict[str, Any]:
    width = _axis(shapes, "embed_tokens.weight", 1)
    states = count(shapes, "layers.") + 1  # the embedding's output is one too
    return {"hidden_states": width * states if width else None}


def _upsampler(shapes: Shapes) -> dict[str, Any]:
    """Nothing in a temporal upsampler tells its version."""
    middle = _axis(shapes, "initial_conv.weight", 0) or 1  # a hostile 0 divides nothing
    rational = (_axis(shapes, "upsampler.conv.weight", 0) or 0) // middle
    plain = shapes.get("upsampler.0.weight", ())
    versions = None
    if rational == 4:
        versions = ("2.0",)  # later versions of the x2 upsampler are not rational
    elif rational == 9:
        versions = ("2.3",)
    elif len(plain) == 4:
        versions = ("2.3", "2.5")
    return {"in_channels": _axis(shapes, "initial_conv.weight", 1), "versions": versions}


_READ = {
    "transformer": _transformer,
    "connectors": _connectors,
    "text_projection": _projection,
    "video_vae": _video_vae,
    "text_encoder": _gemma,
    "upsampler": _upsampler,
}
