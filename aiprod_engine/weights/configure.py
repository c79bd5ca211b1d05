"""The configuration of one network: tensor shapes over the file's `config` over the preset."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import CheckpointError, EngineError, UnsupportedConfig
from .containers.header import Header, short
from .identity.info import Info
from .keymap import PARTS, rooms
from .presets import preset
from .quant.formats import logical_shapes, parse_json
from .shapes import DERIVE, MAX_LAYERS, Shapes

_log = logging.getLogger(__name__)

# kind -> section of `config` that describes it; upsamplers have a flat config.
SECTIONS = {
    "transformer": "transformer",
    "text_connector": "transformer",
    "video_encoder": "vae",
    "video_decoder": "vae",
    "audio_encoder": "audio_vae",
    "audio_decoder": "audio_vae",
    "vocoder": "vocoder",
    "text_encoder": "gemma",
    "text_vision": "gemma",
    "upsampler": "upsampler",
}
_MAX_WIDTH, _MAX_NUMBER = 65_536, 2**31


def component_section(info: Info, header: Header, kind: str) -> dict[str, Any]:
    """Configuration section of `kind` as this file alone describes it."""
    held = rooms(header, info.layout, info.prefix or "", info.components)
    names: dict[str, str] = {}
    for part in PARTS[kind]:
        if part.component not in held:
            raise CheckpointError(f"{header.path.name}: holds no {part.component}")
        names |= held[part.component]
    shapes = logical_shapes(header, names)
    with untrusted(header.path.name, kind):
        return section(kind, shapes, stated(header, kind), info.version)


def section(
    kind: str, shapes: Shapes, config: Mapping[str, Any] | None, version: str | None
) -> dict[str, Any]:
    """Published values of `version`, then what the file states, then what its shapes show.

    `config` None means that the file states nothing; a warning says that presets are used.
    """
    if config is None and SECTIONS[kind] != "gemma":
        _log.warning(
            "%s: the file has no config; the published values of %s are used", kind, version
        )
    has_diffusion = SECTIONS[kind] == "vae" and "decoder.conv_in_x_t.weight" in shapes
    known = preset("vae_diffusion" if has_diffusion else SECTIONS[kind], version)
    if kind == "vocoder" and config and ("bwe" in config) != ("bwe" in known):
        known = {}
    nested = (config or {}).get("_class_name") == "CausalDiffusionVAE"
    base = dict(config) if nested else overlay(known, config or {})
    shown = DERIVE[kind](shapes, base)
    for path, value, other in contradictions(config or {}, shown):
        _log.warning(
            "%s: config says %s = %s, the tensors show %s; the tensors are trusted",
            kind,
            path,
            short(value),
            short(other),
        )
    return overlay(base, shown)


@contextmanager
def untrusted(file: str, kind: str) -> Iterator[None]:
    """Values of a file may have any type: what trips over one is the file's fault."""
    try:
        yield
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        if isinstance(error, EngineError):
            raise
        raise UnsupportedConfig(
            f"{file}: the configuration of its {kind} is unusable "
            f"({type(error).__name__}: {short(error)})"
        ) from error


def stated(header: Header, kind: str) -> dict[str, Any] | None:
    """The section that a file's metadata states for `kind`, checked for size, depth and range."""
    if SECTIONS[kind] == "gemma":
        for key in ("gemma_config", "config.json"):
            if key in header.metadata:
                return _object(header, key)
        return None
    if "config" not in header.metadata:
        return None
    config = _object(header, "config")
    if kind == "upsampler":
        return config
    value = config.get(SECTIONS[kind])
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{header.path.name}: config.{SECTIONS[kind]} is no JSON object")
    return value or None


def _object(header: Header, key: str) -> dict[str, Any]:
    value = parse_json(header.metadata[key], f"{header.path.name}: metadata {key}")
    if not isinstance(value, dict):
        raise CheckpointError(f"{header.path.name}: metadata {key} is no JSON object")
    _check_range(value, key)
    return value


def _check_range(value: Any, path: str) -> None:
    """Numbers must be finite and small enough to be a size: sizes never allocate by themselves."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else ((path, v) for v in value)
        for key, child in items:
            _check_range(child, key)
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    limit = _MAX_NUMBER
    if "num_layers" in path or "num_blocks" in path or path == "num_hidden_layers":
        limit = MAX_LAYERS
    elif path.endswith(("_dim", "channels", "_heads", "hidden_size", "intermediate_size")):
        limit = _MAX_WIDTH
    if (isinstance(value, float) and not math.isfinite(value)) or abs(value) > limit:
        raise UnsupportedConfig(f"config: {short(path)} is {short(value, 20)}; at most {limit}")


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`; objects are merged, everything else (lists too) is replaced."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = overlay(result[key], value) if both else value
    return result


def contradictions(
    stated: Mapping[str, Any], shown: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(path, stated value, shown value) wherever both exist and differ."""
    for key, value in shown.items():
        if key not in stated:
            continue
        if isinstance(value, Mapping) and isinstance(stated[key], Mapping):
            yield from contradictions(stated[key], value, f"{path}{key}.")
        elif stated[key] != value and not isinstance(value, list):
            yield f"{path}{key}", stated[key], value
