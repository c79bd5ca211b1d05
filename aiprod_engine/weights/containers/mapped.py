"""Weight files as mapped memory: a tensor is a view, nothing is read until it is used."""

from __future__ import annotations

import mmap
import os
import sys
from math import prod
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ...errors import CheckpointError
from .gguf_header import BLOCKS
from .header import Header, short

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

# Mappings in use: everybody who opens the same unchanged file shares one, and it closes with the
# last tensor that views it.
_open: WeakValueDictionary[tuple[Path, int, int], mmap.mmap] = WeakValueDictionary()
_lock = Lock()


class MappedFile:
    """The tensors of one file (or sharded set) in stored dtype, as views over the mapping."""

    def __init__(self, header: Header):
        self.header = header
        self._data = {path: _mapping(path) for path in {header.path, *header.shards.values()}}

    def tensor(self, name: str) -> Tensor:
        """The stored tensor; GGUF block types come as uint8 rows (..., row bytes)."""
        info = self.header.tensors[name]
        dtype, shape = DTYPES.get(info.dtype), info.shape
        if self.header.container == "gguf" and dtype is None:
            dtype, shape = torch.uint8, _block_rows(info.dtype, info.shape)
        if dtype is None:
            raise CheckpointError(
                f"{self.header.path.name}: {short(name)} is stored as {info.dtype}, "
                "which this engine does not read"
            )
        data = self._data[self.header.path_of(name)]
        if info.end > len(data):
            raise CheckpointError(f"{self.header.path.name}: changed while it was being read")
        if info.start == info.end:
            return torch.empty(shape, dtype=dtype)
        if info.start % dtype.itemsize:  # old files are not aligned; such a view may be illegal
            size = info.end - info.start
            raw = torch.frombuffer(data, dtype=torch.uint8, offset=info.start, count=size)
            return raw.clone().view(dtype).reshape(shape)
        flat = torch.frombuffer(data, dtype=dtype, offset=info.start, count=prod(shape))
        return flat.reshape(shape)


def _block_rows(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the raw bytes: rows of whole blocks, or one row where the shape was folded."""
    elements, size = BLOCKS[kind]
    if shape and shape[-1] % elements == 0:
        return (*shape[:-1], shape[-1] // elements * size)
    return (prod(shape) // elements * size,)


def _mapping(path: Path) -> mmap.mmap:
    stat = path.stat()
    key = (path, stat.st_size, stat.st_mtime_ns)
    with _lock:
        data = _open.get(key)
        if data is None:
            data = _open[key] = _map(path)
        return data


def _map(path: Path) -> mmap.mmap:
    """A private mapping: a stray write never reaches the file."""
    with path.open("rb") as file:
        if os.name == "nt":  # copy-on-write would charge the whole file to the page file
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Linux refuses private writable mappings beyond RAM + swap unless told not to reserve.
        reserve = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
        flags, protection = mmap.MAP_PRIVATE | reserve, mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(file.fileno(), 0, flags=flags, prot=protection)
