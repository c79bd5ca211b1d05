"""The official and common repackaged files as records, from `ledger.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import CheckpointError
from ..weights.containers.header import short


@dataclass(frozen=True)
class ModelFile:
    """One published file.

    `path` in the `repository` of the hub; `folder` below the host's `models`; `version` is "2.0",
    "2.3", "2.5" or two of them with "|"; `bytes` where the exact size is known, else `gigabytes`
    (1e9) or nothing; `goes_with` names the files that complete it, one alternative each; `gated`:
    the hub asks for an account that accepted the licence.
    """

    name: str
    repository: str
    folder: str
    version: str
    purpose: str
    path: str
    bytes: int | None = None
    gigabytes: float | None = None
    goes_with: tuple[str, ...] = ()
    gated: bool = False

    @property
    def place(self) -> str:
        """Where it belongs, as users read it."""
        return f"models/{self.folder}/{self.name}"

    @property
    def approximate_bytes(self) -> int | None:
        """Exact where known, else rounded, else None."""
        return self.bytes or (int(self.gigabytes * 1e9) if self.gigabytes else None)

    @property
    def size(self) -> str:
        """Size in words."""
        size = self.approximate_bytes
        return "size unknown" if size is None else gigabytes(size)


@cache
def ledger() -> dict[str, ModelFile]:
    """All records by file name."""
    rows = json.loads((Path(__file__).parent / "ledger.json").read_text(encoding="utf-8"))
    return {row["name"]: _record(row) for row in rows}


def record(name: str) -> ModelFile:
    """The record of a file; raises if the ledger does not know it."""
    found = ledger().get(name)
    if found is None:
        raise CheckpointError(
            f"a file to download must be in the ledger; {short(name)} is not: "
            "`files` without arguments lists what is"
        )
    return found


def gigabytes(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 1e9:.2f} GB"


def _record(row: dict) -> ModelFile:
    complete = {"path": row["name"], **row, "goes_with": tuple(row.get("goes_with", ()))}
    return ModelFile(**complete)
