"""Which files lie in the host's model folders, and whether they are whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..weights.containers.header import SUFFIXES
from ..weights.containers.read import read_header
from .records import ledger


@dataclass(frozen=True)
class Presence:
    """What became of one wanted file: its path (None = missing) and what is wrong with it."""

    name: str
    path: Path | None = None
    fault: str | None = None

    @property
    def is_usable(self) -> bool:
        return self.path is not None and self.fault is None

    @property
    def word(self) -> str:
        return "present" if self.is_usable else "broken" if self.path else "missing"


def find_all(names: Iterable[str], folders: Sequence[Path]) -> list[Presence]:
    """Look for `names` anywhere below `folders`; reads directory entries and headers only."""
    lying: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                lying.setdefault(path.name, path)
    return [
        Presence(name, lying[name], fault(lying[name])) if name in lying else Presence(name)
        for name in names
    ]


def fault(path: Path, name: str | None = None) -> str | None:
    """Why a file cannot be used as `name` (default: its own), in one sentence; None if it can."""
    name = name or path.name
    known, size = ledger().get(name), path.stat().st_size
    if known is not None and known.bytes is not None and size < known.bytes:
        return (
            f"{name} must have {known.bytes} bytes, found {size}: the download is unfinished; "
            f"fetch the remaining {known.bytes - size} bytes"
        )
    if known is not None and known.bytes not in (None, size):
        return (
            f"{name} must have {known.bytes} bytes, found {size}: it is another file; "
            f"fetch it again from {known.repository}"
        )
    try:
        read_header(path)
    except CheckpointError as error:
        return str(error)
    return None
