"""What a file is, from names, shapes and metadata alone. File names decide nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from pathlib import Path

from ...errors import CheckpointError
from ..containers.header import Header, short
from ..containers.read import read_header
from ..files import Files, open_headers
from ..keymap import rooms
from ..quant.formats import layer_formats, logical_shapes, summary
from .facts import facts
from .info import Info, generation, ordered
from .signatures import COMPONENT_TESTS, Keys, adapter

_EXPECTED = (
    "expected an LTX-2 checkpoint, transformer, VAE, audio VAE, text connectors, upsampler, "
    "Gemma text encoder or LoRA"
)

_LONG_HEADER = 8_000_000  # bytes; that of a complete checkpoint has 0.9 MB

_CONFIGURED = (
    *("checkpoint", "diffusers_transformer", "video_vae", "audio_vae", "connectors"),
    "latent_upsampler",
)
_KINDS = (
    *("checkpoint", "diffusers_transformer", "text_encoder", "connectors", "video_vae"),
    *("audio_vae", "latent_upsampler", "duration_head", "lora", "unsupported_ltxv", "unknown"),
)


def inspect(files: Files) -> Info:
    """Identify what `files` hold together, from their headers."""
    return merged([identify(header) for header in open_headers(files)])


def recognize(header: Header) -> Info:
    """Kind, version and components alone: quick, and nothing is kept of the header."""
    found = Keys(header)
    return adapter(found) or _by_components(found)


def sniff(path: Path) -> Info | None:
    """Kind, version and components of one file; None where that cannot be told.

    For looking through folders: headers that would take long are not read.
    """
    if not path.is_file():  # opening a pipe would wait for its other end
        return None
    try:
        with path.open("rb") as file:
            head = file.read(8)
        if head[:4] != b"GGUF" and int.from_bytes(head, "little") > _LONG_HEADER:
            return None
        return recognize(read_header(path, keep=False))
    except (CheckpointError, OSError):
        return None


@lru_cache(maxsize=64)
def identify(header: Header) -> Info:
    """Identify one file or sharded set; tests in the order of the checkpoint page."""
    info = recognize(header)
    info = replace(info, metadata=header.metadata, name=header.path.name)
    if info.kind == "unknown":
        note = f"{header.path.name}: not a file of the LTX-2 family; {_EXPECTED}"
        quant = "gguf" if header.container == "gguf" else "none"
        return replace(info, prefix=None, quant=quant, notes=(note,))
    formats = {} if info.kind == "lora" else layer_formats(header)
    info = replace(info, quant=summary(formats, header.container))
    if info.kind in _CONFIGURED and "config" not in header.metadata:
        note = f"no config in the file: the published values of {info.version or 'LTX-2'} are used"
        info = replace(info, notes=(*info.notes, note))
    return _counted(_narrowed(info), header)


def merged(infos: Sequence[Info]) -> Info:
    """One Info for files used together: the one with the transformer leads."""
    if len(infos) == 1:
        return infos[0]
    lead = min(infos, key=lambda info: _KINDS.index(info.kind))
    known = [info for info in infos if info.kind != "unknown"]
    quants = {info.quant for info in known} - {"none"}
    tensors: dict[str, int] = {}
    parameters: dict[str, int] = {}
    for info in known:
        for component, count in info.tensors.items():
            tensors[component] = tensors.get(component, 0) + count
            parameters[component] = parameters.get(component, 0) + info.parameters[component]
    return replace(
        lead,
        components=ordered(c for info in infos for c in info.components),
        quant="none" if not quants else quants.pop() if len(quants) == 1 else "mixed",
        tensors=tensors,
        parameters=parameters,
        facts={name: value for info in known for name, value in info.facts.items()},
        notes=tuple(dict.fromkeys(note for info in infos for note in info.notes)),
    )


def _by_components(found: Keys) -> Info:
    """Tests 2 to 12: the first one names the kind, all together the components."""
    infos = [info for test in COMPONENT_TESTS if (info := test(found)) is not None]
    if not infos:
        return Info("unknown")
    lead = infos[0]
    if lead.kind == "unsupported_ltxv":
        return lead
    return replace(lead, components=ordered(c for info in infos for c in info.components))


def _narrowed(info: Info) -> Info:
    """Let `model_version` choose between versions that shapes cannot tell apart."""
    stated = generation(info.metadata.get("model_version"))
    if stated is None or info.version is None:
        return info
    if stated in info.version.split("|"):
        return replace(info, version=stated)
    said = short(info.metadata["model_version"], 20)
    note = f"model_version says {said}, the shapes say {info.version}; the shapes are trusted"
    return replace(info, notes=(*info.notes, note))


def _counted(info: Info, header: Header) -> Info:
    if info.kind == "lora":
        held = {"lora": {key: key for key in header.tensors}}
    else:
        held = rooms(header, info.layout, info.prefix or "", info.components)
    shapes = {room: logical_shapes(header, names) for room, names in held.items()}
    return replace(
        info,
        tensors={room: len(names) for room, names in held.items()},
        parameters={room: sum(map(prod, known.values())) for room, known in shapes.items()},
        facts=facts(shapes),
    )
