"""Lines for people: the state of every known file, or of those that one workflow needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .presence import Presence, find_all
from .records import gigabytes, ledger
from .workflows import files_of, workflows_naming


def everything(folders: Sequence[Path]) -> list[str]:
    """All files of the ledger; with their state where folders are given."""
    lines = []
    for found in find_all(ledger(), folders):
        lines += _lines(found, bool(folders))
        known = ledger()[found.name]
        for title, names in (
            ("goes with", known.goes_with),
            ("workflows", workflows_naming(known.name)),
        ):
            if names:
                lines.append(f"    {title}: {', '.join(names)}")
    if not folders:
        lines.append("say where your model folders are (--models DIR) to see which you have")
    return lines


def of_workflow(workflow: str, folders: Sequence[Path]) -> list[str]:
    """The files of one workflow; those that are lacking with the command that fetches them."""
    found = find_all(files_of(workflow), folders)
    lines = [f"{workflow} needs {len(found)} files"]
    for item in found:
        lines += _lines(item, bool(folders))
        if not item.is_usable and item.name in ledger():
            lines.append(f"    python -m aiprod_engine files --download {item.name}")
    if lacking := [item.name for item in found if not item.is_usable]:
        lines.append(f"{len(lacking)} to fetch, {_total(lacking)}")
    else:
        lines.append("all are present")
    return lines


def _lines(found: Presence, is_searched: bool) -> list[str]:
    """Name, place, size, version, purpose and source; below it what is wrong with the file."""
    known = ledger().get(found.name)
    if known is None:
        text = f"{found.name}: not in the ledger"
    else:
        source = f"{known.repository}{' (licence to accept)' if known.gated else ''}"
        text = f"{known.place}  {known.size}  {known.version}  {known.purpose}  {source}"
    state = f"{found.word:<8} " if is_searched else ""
    return [state + text, *([f"    {found.fault}"] if found.fault else [])]


def _total(names: Sequence[str]) -> str:
    sizes = [ledger()[name].approximate_bytes if name in ledger() else None for name in names]
    known = gigabytes(sum(size for size in sizes if size))
    return f"{known} and what is not known" if None in sizes else known
