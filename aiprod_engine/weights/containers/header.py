"""What a weight file says about itself, whatever its container: names, shapes, dtypes, metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = (".safetensors", ".sft", ".gguf")
MAX_TENSORS = 200_000
MAX_METADATA_VALUE = 16_000_000  # bytes


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


def short(text: object, limit: int = 80) -> str:
    """A string from a file as it may appear in a message: quoted, escaped, cut."""
    text = str(text)
    return ascii(text if len(text) <= limit else text[: limit - 3] + "...")
