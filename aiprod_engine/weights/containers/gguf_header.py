"""GGUF container: tensor table and string key-values, little-endian, versions 2 and 3."""

from __future__ import annotations

import mmap
import struct
from math import prod
from pathlib import Path
from types import MappingProxyType

from ...errors import CheckpointError
from .header import MAX_METADATA_VALUE, MAX_TENSORS, Header, TensorInfo, short

# ggml type id -> (name, elements per block, bytes per block); blocks run along the last axis.
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    30: ("BF16", 1, 2),
}
BLOCKS = {name: (elements, size) for name, elements, size in TYPES.values()}

MAX_ARRAY = 10_000_000  # a Gemma vocabulary has 262,144 strings
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."


def parse_gguf(path: Path) -> Header:
    """Checked header of a GGUF file; metadata keeps the string key-values, shapes are logical."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(path, data)
        version, count, pairs = reader.numbers("IQQ", at=4)
        if version not in (2, 3):
            raise reader.bad(f"has version {version}; supported: 2 and 3")
        if max(count, pairs) > MAX_TENSORS:
            raise reader.bad(f"announces {max(count, pairs)} entries; at most {MAX_TENSORS}")
        values = reader.key_values(pairs)
        tensors = _tensor_table(reader, count, values)
    metadata = {key: value for key, value in values.items() if isinstance(value, str)}
    return Header(path, MappingProxyType(tensors), MappingProxyType(metadata), "gguf")


class _Reader:
    """A bounds-checked cursor over the mapped file."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at, self.size = path, data, 0, len(data)

    def bad(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path.name}: the GGUF file {why}")

    def skip(self, count: int) -> int:
        """Move past `count` bytes that must exist; returns where they start."""
        start, self.at = self.at, self.at + count
        if self.at > self.size:
            missing = self.at - self.size
            raise self.bad(f"is truncated: {missing} bytes are missing (unfinished download?)")
        return start

    def numbers(self, codes: str, at: int | None = None) -> tuple:
        if at is not None:
            self.at = at
        return struct.unpack_from("<" + codes, self.data, self.skip(struct.calcsize("<" + codes)))

    def string(self) -> str:
        length = self.numbers("Q")[0]
        start = self.skip(length)
        if length > MAX_METADATA_VALUE:
            raise self.bad(f"holds a string of {length} bytes; at most {MAX_METADATA_VALUE}")
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            raise self.bad("holds a string that is not UTF-8") from None

    def key_values(self, count: int) -> dict[str, object]:
        values: dict[str, object] = {}
        for _ in range(count):
            key, kind = self.string(), self.numbers("I")[0]
            if key in values:
                raise self.bad(f"holds the key {short(key)} twice")
            values[key] = self.array(key) if kind == _ARRAY else self.scalar(kind)
        return values

    def scalar(self, kind: int) -> object:
        if kind == _STRING:
            return self.string()
        if kind not in _SCALARS:
            raise self.bad(f"holds a value of the unknown type {kind}")
        return self.numbers(_SCALARS[kind])[0]

    def array(self, key: str) -> tuple | None:
        """Elements of an original-shape array; other arrays (vocabularies) are passed over."""
        kind, count = self.numbers("IQ")
        if count > MAX_ARRAY:
            raise self.bad(f"holds an array of {count} elements; at most {MAX_ARRAY}")
        if kind == _STRING:
            for _ in range(count):
                self.skip(self.numbers("Q")[0])
            return None
        if kind not in _SCALARS:
            raise self.bad(f"holds an array of the unsupported type {kind}")
        if key.startswith(_ORIGINAL_SHAPE) and count <= 8:
            return self.numbers(f"{count}{_SCALARS[kind]}")
        self.skip(count * struct.calcsize("<" + _SCALARS[kind]))
        return None


def _tensor_table(reader: _Reader, count: int, values: dict) -> dict[str, TensorInfo]:
    entries = []
    for _ in range(count):
        name, dims = reader.string(), reader.numbers("I")[0]
        if dims > 4:
            raise reader.bad(f"gives {short(name)} {dims} dimensions; at most 4")
        entries.append((name, reader.numbers(f"{dims}Q"), *reader.numbers("IQ")))
    base = -(-reader.at // (step := _alignment(reader, values))) * step
    tensors: dict[str, TensorInfo] = {}
    for name, stored, kind, offset in entries:
        if name in tensors:
            raise reader.bad(f"holds the tensor {short(name)} twice")
        if offset % step:
            raise reader.bad(f"places {short(name)} off its alignment of {step} bytes")
        size = _payload(reader, name, stored, kind)
        if (missing := base + offset + size - reader.size) > 0:
            raise reader.bad(f"is truncated: {missing} bytes are missing (unfinished download?)")
        shape = _logical_shape(reader, name, stored, values)
        tensors[name] = TensorInfo(TYPES[kind][0], shape, base + offset, base + offset + size)
    _check_overlap(reader, tensors)
    return tensors


def _alignment(reader: _Reader, values: dict) -> int:
    step = values.get("general.alignment", 32)
    if type(step) is not int or not 0 < step <= 2**20 or step & (step - 1):
        raise reader.bad(f"has the alignment {short(step)}; a power of two is needed")
    return step


def _payload(reader: _Reader, name: str, stored: tuple[int, ...], kind: int) -> int:
    """Bytes of a tensor; `stored` dims come fastest first, rows are whole blocks."""
    if kind not in TYPES:
        known = ", ".join(name for name, _, _ in TYPES.values())
        raise reader.bad(f"stores {short(name)} as the unknown type {kind}; known: {known}")
    _, block, size = TYPES[kind]
    if (stored[0] if stored else 1) % block:
        raise reader.bad(f"has rows of {stored[0] if stored else 1} in {short(name)}, not {block}s")
    elements = prod(stored)
    if elements >= 2**63:
        raise reader.bad(f"gives {short(name)} an absurd size")
    return elements // block * size


def _logical_shape(reader: _Reader, name: str, stored: tuple, values: dict) -> tuple[int, ...]:
    original = values.get(_ORIGINAL_SHAPE + name)
    if original is None:
        return tuple(reversed(stored))
    is_shape = isinstance(original, tuple) and all(type(n) is int and n >= 0 for n in original)
    if not is_shape or prod(original) != prod(stored):
        raise reader.bad(f"gives {short(name)} no original shape of its size")
    return tuple(original)


def _check_overlap(reader: _Reader, tensors: dict[str, TensorInfo]) -> None:
    end = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start < end:
            raise reader.bad(f"lets {short(name)} overlap another tensor")
        end = max(end, info.end)
