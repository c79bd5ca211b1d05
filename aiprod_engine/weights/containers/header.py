"""Names, shapes, dtypes and metadata of a weight file, read and checked without its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...errors import CheckpointError

SUFFIXES = (".safetensors", ".sft", ".gguf")
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
MAX_HEADER = 100_000_000  # bytes, as the safetensors library
MAX_TENSORS = 200_000
MAX_DIMS = 64
MAX_METADATA_VALUE = 16_000_000
MAX_PAYLOAD = 256_000_000  # a Gemma tokenizer.json has 33 MB

# Dtypes of safetensors 0.8 and their bits.
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: dtype as the container spells it, logical shape, byte range [start, end).

    GGUF files give the ggml type name ("Q4_K") as dtype; the range is absolute in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Header:
    """What a file says about itself; `container` is "safetensors" or "gguf".

    A sharded set is one header too: `shards` says in which file each tensor lies.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    container: str
    shards: Mapping[str, Path] = field(default_factory=dict)

    def path_of(self, name: str) -> Path:
        """File that holds tensor `name`."""
        return self.shards.get(name, self.path)


def read_header(path: str | Path) -> Header:
    """Checked header of one file; raises CheckpointError with the reason if anything is off."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise CheckpointError(f"{path.name}: {suffix} files are not opened; convert to safetensors")
    if suffix not in SUFFIXES:
        raise CheckpointError(f"{path.name}: only {', '.join(SUFFIXES)} files are opened")
    try:
        stat = path.stat()
        return _read(path.resolve(), stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read ({error.strerror})") from error


def read_bytes(header: Header, name: str) -> bytes:
    """Raw bytes of a small payload tensor (layer record, tokenizer)."""
    info = header.tensors.get(name)
    if info is None:
        raise CheckpointError(f"{header.path.name}: has no tensor {short(name)}")
    if info.end - info.start > MAX_PAYLOAD:
        raise CheckpointError(
            f"{header.path.name}: {short(name)} has {info.end - info.start} bytes; "
            f"a payload has at most {MAX_PAYLOAD}"
        )
    with header.path_of(name).open("rb") as file:
        file.seek(info.start)
        return file.read(info.end - info.start)


def short(text: object, limit: int = 80) -> str:
    """A string from a file as it may appear in a message: quoted, escaped, cut."""
    text = str(text)
    return ascii(text if len(text) <= limit else text[: limit - 3] + "...")


@lru_cache(maxsize=64)
def _read(path: Path, size: int, mtime_ns: int) -> Header:  # noqa: ARG001 (mtime_ns: cache key)
    from .gguf_header import parse_gguf

    with path.open("rb") as file:
        head = file.read(512)
        if head[:4] == b"GGUF":
            return parse_gguf(path)
        length = _header_length(path, head, size)
        file.seek(8)
        text = file.read(length)
    tensors, metadata = _parse(path, text, size)
    return Header(path, MappingProxyType(tensors), MappingProxyType(metadata), "safetensors")


def _header_length(path: Path, head: bytes, size: int) -> int:
    if reason := _named_reason(head, size):
        raise CheckpointError(f"{path.name}: {reason}")
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{path.name}: not a safetensors file: header length {length} exceeds {MAX_HEADER}"
        )
    if head[8:9] not in (b"{", b""):
        raise CheckpointError(f"{path.name}: not a safetensors file: the header is no JSON object")
    if length < 2 or length > size - 8:
        raise CheckpointError(
            f"{path.name}: truncated: at least {max(length - (size - 8), 1)} bytes of the header "
            "are missing (unfinished download?); fetch the file again"
        )
    return length


def _named_reason(head: bytes, size: int) -> str | None:
    """The typical breakages, by their first bytes."""
    start = head.lstrip().lower()
    if size == 0:
        return "the file is empty (unfinished download?); fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the weights; run `git lfs pull`"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML page, not weights (failed download?); fetch the file again"
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive or pickled checkpoint; convert to safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        # A safetensors header of this length would start with "{" at byte 8.
        return None if head[8:9] == b"{" else "a pickle; convert to safetensors"
    if size < 8:
        return f"too short for a safetensors file ({size} bytes); fetch it again"
    return None


def _parse(path: Path, text: bytes, size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError:
        raise CheckpointError(f"{path.name}: the header is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, _DuplicateKeyError) else "not valid JSON"
        raise CheckpointError(f"{path.name}: the header is broken: {reason}") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path.name}: the header is no JSON object")
    metadata = _metadata(path, entries.pop("__metadata__", {}))
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"{path.name}: {len(entries)} tensors; at most {MAX_TENSORS}")
    base = 8 + len(text)
    tensors = {name: _tensor(path, name, entry, base) for name, entry in entries.items()}
    _check_cover(path, tensors, base, size)
    return tensors, metadata


class _DuplicateKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _DuplicateKeyError(f"key {short(twice)} occurs twice")
    return result


def _metadata(path: Path, raw: object) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise CheckpointError(f"{path.name}: __metadata__ must map strings to strings")
    for key, value in raw.items():
        if len(value) > MAX_METADATA_VALUE:
            raise CheckpointError(f"{path.name}: metadata {short(key)} exceeds 16 MB")
    return raw


def _tensor(path: Path, name: str, entry: object, base: int) -> TensorInfo:
    def bad(why: str) -> CheckpointError:
        return CheckpointError(f"{path.name}: tensor {short(name)} {why}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise bad("needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise bad(f"has the unknown dtype {short(dtype)}")
    if not _are_sizes(shape):
        raise bad(f"has the shape {short(shape)}; sizes are non-negative integers")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise bad(f"has the data range {short(offsets)}; two non-negative integers are needed")
    start, end = offsets
    bits = prod(shape) * BITS[dtype]
    if bits >= 2**63 or (end - start) * 8 != bits:
        raise bad(f"has {end - start} bytes where {dtype} {short(shape)} needs {bits / 8:.10g}")
    return TensorInfo(dtype, tuple(shape), base + start, base + end)


def _are_sizes(values: object) -> bool:
    if not isinstance(values, list) or len(values) > MAX_DIMS:
        return False
    return all(type(v) is int and 0 <= v < 2**63 for v in values)  # bool is not a size


def _check_cover(path: Path, tensors: dict[str, TensorInfo], base: int, size: int) -> None:
    """Byte ranges must follow each other without overlap or hole and end with the file."""
    spans = sorted(((info.start, info.end, name) for name, info in tensors.items()))
    spans = [(base, base, "the header"), *spans]
    for (_, previous, left), (start, _, right) in pairwise(spans):
        if start != previous:
            what = "overlap" if start < previous else "leave a hole"
            raise CheckpointError(f"{path.name}: {short(left)} and {short(right)} {what}")
    last = spans[-1][1]
    if last > size:
        raise CheckpointError(
            f"{path.name}: truncated: {last - size} bytes are missing (unfinished download?); "
            "fetch the file again"
        )
    if last < size:
        raise CheckpointError(f"{path.name}: {size - last} bytes follow the last tensor")
