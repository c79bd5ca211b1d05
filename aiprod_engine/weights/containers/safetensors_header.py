"""safetensors container: a JSON table of tensors and string metadata before the data."""

from __future__ import annotations

import json
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...errors import CheckpointError
from .header import MAX_METADATA_VALUE, MAX_TENSORS, Header, TensorInfo, short

MAX_HEADER = 100_000_000  # bytes, as the safetensors library
MAX_DIMS = 64

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


def parse_safetensors(path: Path, size: int) -> Header:
    """Checked header of a safetensors file of `size` bytes."""
    with path.open("rb") as file:
        length = _header_length(path, file.read(512), size)
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
