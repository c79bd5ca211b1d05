"""Where the tensors of one network lie: chosen files, names, shapes, stored formats, config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from ..errors import CheckpointError
from .configure import section, stated, untrusted
from .containers.header import Header
from .files import Files, open_headers
from .identity.fit import check_fit
from .identity.identify import identify
from .identity.info import Info
from .keymap import PARTS, Part, rooms, take
from .quant.formats import LayerFormat, layer_formats, logical_shapes

# What a part may be called in `Info.components`.
_ACCEPTED = {
    "text_encoder": ("gemma3_12b", "gemma4_12b"),
    "text_vision": ("gemma3_12b",),
    "video_vae": ("video_vae", "video_vae_diffusion"),
    "upsampler": ("spatial_x2", "spatial_x1.5", "spatial_x4", "spatial_x0.75", "temporal_x2"),
}


@dataclass(frozen=True, eq=False)
class Stored:
    """One tensor: where it lies and, for the weight of a quantised layer, how it is stored.

    `shape` is that of the values it stands for; None for what only accompanies a packed weight.
    """

    header: Header
    key: str
    shape: tuple[int, ...] | None
    format: LayerFormat | None


@dataclass(frozen=True, eq=False)
class Source:
    """Everything about one network that headers tell.

    `tensors` by their name in the network; `shapes` of every name of the whole component (both
    halves of a VAE); `section`: its configuration; `info`: what the leading file is.
    """

    kind: str
    tensors: Mapping[str, Stored]
    shapes: Mapping[str, tuple[int, ...]]
    section: Mapping[str, Any]
    info: Info

    @property
    def formats(self) -> dict[str, LayerFormat]:
        """Formats of the quantised layers by module name."""
        return {n.removesuffix(".weight"): t.format for n, t in self.tensors.items() if t.format}


def find(kind: str, files: Files) -> Source:
    """Choose the files that hold `kind` and describe it; reads headers only, once per file."""
    if kind not in PARTS:
        raise CheckpointError(f"unknown kind {kind!r}; known: {', '.join(PARTS)}")
    return _find(kind, open_headers(files))


@lru_cache(maxsize=32)
def _find(kind: str, headers: tuple[Header, ...]) -> Source:
    known = [(header, identify(header)) for header in headers]
    chosen = [(part, *_owner(kind, part, known)) for part in PARTS[kind]]
    used = {id(header): info for _, header, info in chosen}
    check_fit(*used.values())
    tensors: dict[str, Stored] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    config: dict[str, Any] | None = None
    for part, header, info in chosen:
        held = rooms(header, info.layout, info.prefix or "", info.components)
        room = held.get(part.component, {})
        shapes |= logical_shapes(header, room)
        tensors |= _stored(header, take(part, room))
        config = stated(header, kind) if config is None else config
    lead = chosen[0][2]
    version = lead.version or next((info.version for _, _, info in chosen if info.version), None)
    with untrusted(lead.name, kind):
        described = section(kind, shapes, config, version)
    return Source(kind, MappingProxyType(tensors), MappingProxyType(shapes), described, lead)


def _stored(header: Header, names: Mapping[str, str]) -> dict[str, Stored]:
    shapes = logical_shapes(header, names)
    layers = {layer.tensors["weight"]: layer for layer in layer_formats(header).values()}
    return {
        name: Stored(header, key, shapes.get(name), layers.get(key)) for name, key in names.items()
    }


def _owner(kind: str, part: Part, known: list[tuple[Header, Info]]) -> tuple[Header, Info]:
    """The one file that holds `part`; for connectors the transformer's file wins."""
    names = set(_ACCEPTED.get(part.component, (part.component,)))
    owners = [(header, info) for header, info in known if names & set(info.components)]
    if len(owners) > 1 and part.component == "connectors":
        owners = [pair for pair in owners if "transformer" in pair[1].components] or owners
    if len(owners) == 1:
        return owners[0]
    if owners:
        files = ", ".join(header.path.name for header, _ in owners)
        raise CheckpointError(f"several files hold the {part.component}: {files}; pass one of them")
    raise CheckpointError(_absent(kind, part, known))


def _absent(kind: str, part: Part, known: list[tuple[Header, Info]]) -> str:
    for _, info in known:
        if info.kind == "unsupported_ltxv":
            return f"{info.name}: {info.notes[0]}"
    held = "; ".join(
        f"{info.name} is {info.kind} ({' '.join(info.components) or 'nothing known'})"
        for _, info in known
    )
    return f"no file holds the {part.component} that {kind} needs: {held}"
