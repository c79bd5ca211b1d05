"""Where the tensors of one network lie: chosen files, names, shapes, stored formats, config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError, EngineError, UnsupportedConfig
from .configure import section, stated
from .files import Files, open_headers
from .fit import check_fit
from .header import Header, TensorInfo, short
from .identify import identify
from .info import Info
from .keymap import PARTS, Part, split, take
from .quant_formats import LayerFormat, layer_formats, logical_shape

# What a part may be called in `Info.components`.
_ACCEPTED = {
    "text_encoder": ("gemma3_12b", "gemma4_12b"),
    "upsampler": ("spatial_x2", "spatial_x1.5", "spatial_x4", "spatial_x0.75", "temporal_x2"),
}
_DIFFUSION_DECODER = (
    "the diffusion decoder of the 2.5 video VAE is not supported; "
    "use the file ltx-2.5-video-vae-conv, which decodes the same latents"
)


@dataclass(frozen=True, eq=False)
class Source:
    """Everything about one network that headers tell.

    `tensors`: name in the network -> (header, key); `shapes`: logical shape of every name of the
    component (of both halves of a VAE); `formats`: quantised layers by module name; `section`: its
    configuration; `info`: what the leading file is.
    """

    kind: str
    tensors: Mapping[str, tuple[Header, str]]
    shapes: Mapping[str, tuple[int, ...]]
    formats: Mapping[str, LayerFormat]
    section: Mapping[str, Any]
    info: Info

    def stored(self, name: str) -> TensorInfo:
        """Header entry of a tensor."""
        header, key = self.tensors[name]
        return header.tensors[key]

    def shape(self, name: str) -> tuple[int, ...]:
        """Logical shape of a tensor."""
        return logical_shape(self.stored(name), self.format_of(name))

    def format_of(self, name: str) -> LayerFormat | None:
        """How the tensor is stored, if it is the weight of a quantised layer."""
        found = self.formats.get(name.removesuffix(".weight"))
        if found is None or name not in self.tensors:
            return None
        return found if found.tensors["weight"] == self.tensors[name][1] else None


def find(kind: str, files: Files) -> Source:
    """Choose the files that hold `kind` and describe it; reads headers only."""
    if kind not in PARTS:
        raise CheckpointError(f"unknown kind {kind!r}; known: {', '.join(PARTS)}")
    known = [(header, identify(header)) for header in open_headers(files)]
    chosen = [(part, *_owner(kind, part, known)) for part in PARTS[kind]]
    used = {id(header): info for _, header, info in chosen}
    check_fit(*used.values())
    tensors: dict[str, tuple[Header, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    formats: dict[str, LayerFormat] = {}
    config: dict[str, Any] | None = None
    for part, header, info in chosen:
        names = split(header.tensors, info.layout, info.prefix or "", info.components)
        room = names.get(part.component, {})
        layers = _by_weight(header)
        shapes |= {n: logical_shape(header.tensors[k], layers.get(k)) for n, k in room.items()}
        taken = take(part, room)
        tensors |= {name: (header, key) for name, key in taken.items()}
        formats |= {
            name.removesuffix(".weight"): layers[key]
            for name, key in taken.items()
            if key in layers
        }
        config = stated(header, kind) if config is None else config
    lead = chosen[0][2]
    version = lead.version or next((info.version for _, _, info in chosen if info.version), None)
    with untrusted(lead.name, kind):
        described = section(kind, shapes, config, version)
    return Source(kind, tensors, shapes, formats, described, lead)


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


def _by_weight(header: Header) -> dict[str, LayerFormat]:
    """Formats by the key of the layer's weight."""
    try:
        found = layer_formats(header)
    except CheckpointError as error:
        raise CheckpointError(f"{header.path.name}: {error}") from None
    return {layer.tensors["weight"]: layer for layer in found.values()}


def _owner(kind: str, part: Part, known: list[tuple[Header, Info]]) -> tuple[Header, Info]:
    """The one file that holds `part`; for connectors the transformer's file wins."""
    names = set(_ACCEPTED.get(part.component, (part.component,)))
    if kind == "video_encoder":  # convolutional in every version
        names.add("video_vae_diffusion")
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
        if kind == "video_decoder" and "video_vae_diffusion" in info.components:
            return f"{info.name}: {_DIFFUSION_DECODER}"
    held = "; ".join(
        f"{info.name} is {info.kind} ({' '.join(info.components) or 'nothing known'})"
        for _, info in known
    )
    return f"no file holds the {part.component} that {kind} needs: {held}"
