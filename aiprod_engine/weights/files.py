"""From what a user names (a file, several, a folder) to checked headers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from ..errors import CheckpointError
from .containers.header import SUFFIXES, Header, short
from .containers.read import read_header
from .quant.formats import parse_json

# Parts of a diffusers folder, in the order in which they are identified.
DIFFUSERS_PARTS = (
    "transformer",
    "connectors",
    "vae",
    "audio_vae",
    "vocoder",
    "text_encoder",
    "latent_upsampler",
)
FOLDER_CONFIG = "config.json"  # metadata key under which a folder's configuration is kept
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")  # may be named among the files
_INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
_MAX_INDEX = 100_000_000

Files = str | Path | Sequence[str | Path]


def open_headers(files: Files) -> tuple[Header, ...]:
    """Headers of everything that `files` names; shards of one set become one header."""
    paths = [files] if isinstance(files, str | Path) else list(files)
    if not paths:
        raise CheckpointError("no file was given")
    singles, headers = [], []
    for path in map(Path, paths):
        if path.is_dir():
            headers += _folder(path)
        elif path.name.endswith(_INDEX):
            headers.append(_indexed(path))
        elif path.name not in TOKENIZER_FILES:
            singles.append(path)
    return (*_grouped(singles), *headers)


def _folder(folder: Path) -> list[Header]:
    """A diffusers folder gives one header per part, any other folder one per weight file or set."""
    parts = [folder / part for part in DIFFUSERS_PARTS if (folder / part).is_dir()]
    if (folder / "model_index.json").is_file():
        return [header for part in parts for header in _leaf(part)]
    found = _leaf(folder)
    return found or [header for part in parts for header in _leaf(part)] or _nothing(folder)


def _nothing(folder: Path) -> list[Header]:
    raise CheckpointError(f"{folder.name}: the folder holds no {', '.join(SUFFIXES)} file")


def _leaf(folder: Path) -> list[Header]:
    indices = sorted(folder.glob(f"*{_INDEX}"))
    if len(indices) > 1:
        names = ", ".join(index.name for index in indices)
        raise CheckpointError(f"{folder.name}: several index files ({names}); name one of them")
    if indices:
        return [_indexed(indices[0])]
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return [_with_config(header, folder) for header in _grouped(files)]


def _grouped(paths: Iterable[Path]) -> list[Header]:
    """One header per file, except that `x-0000N-of-0000M` files of one folder belong together."""
    groups: dict[tuple, list[Path]] = {}
    for path in paths:
        match = _SHARD.fullmatch(path.name)
        key = (path.parent, *match.groups()) if match else (path,)
        if path in groups.setdefault(key, []):
            raise CheckpointError(f"{path.name} is named twice")
        groups[key].append(path)
    return [_merged(tuple(map(read_header, group))) for group in groups.values()]


def _indexed(index: Path) -> Header:
    """The shards that an index names; it may only name files of its own folder."""
    if index.stat().st_size > _MAX_INDEX:
        raise CheckpointError(f"{index.name} is larger than {_MAX_INDEX} bytes")
    value = parse_json(index.read_bytes(), index.name, _MAX_INDEX)
    table = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise CheckpointError(f"{index.name} has no table `weight_map` of file names")
    names = sorted(set(table.values()))
    for name in names:
        if "/" in name or "\\" in name or ".." in name or Path(name).name != name:
            raise CheckpointError(f"{index.name} names {short(name)}, not a file of its folder")
    merged = _merged(tuple(read_header(index.parent / name) for name in names))
    if missing := sorted(table.keys() - merged.tensors.keys()):
        raise CheckpointError(
            f"{index.name} lists {short(missing[0])}, which no shard holds; fetch the shards again"
        )
    return _with_config(merged, index.parent)


@lru_cache(maxsize=16)
def _merged(headers: tuple[Header, ...]) -> Header:
    if len(headers) == 1:
        return headers[0]
    tensors, metadata, shards = {}, {}, {}
    for header in headers:
        if twice := tensors.keys() & header.tensors.keys():
            name = short(min(twice))
            raise CheckpointError(f"{header.path.name}: another shard holds {name} too")
        tensors.update(header.tensors)
        metadata.update(header.metadata)
        shards.update(dict.fromkeys(header.tensors, header.path))
    return Header(
        headers[0].path,
        MappingProxyType(tensors),
        MappingProxyType(metadata),
        headers[0].container,
        MappingProxyType(shards),
    )


def _with_config(header: Header, folder: Path) -> Header:
    """The header with the folder's config.json among its metadata."""
    path = folder / FOLDER_CONFIG
    if not path.is_file():
        return header
    return _configured(header, path.read_text(encoding="utf-8", errors="replace"))


@lru_cache(maxsize=16)
def _configured(header: Header, text: str) -> Header:
    metadata = MappingProxyType({**header.metadata, FOLDER_CONFIG: text})
    return Header(header.path, header.tensors, metadata, header.container, header.shards)
