"""`python -m aiprod_engine files`: what is there, what is missing, and fetching it when asked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import CheckpointError


def add_files(commands: argparse._SubParsersAction) -> None:
    """Add the command; nothing heavy is imported before it runs."""
    command = commands.add_parser(
        "files", help="list known model files, say which are missing, fetch one by name"
    )
    command.set_defaults(run=files)
    command.add_argument("--models", type=Path, nargs="+", metavar="DIR",
                         help="models folders; default: those of the host around")  # fmt: skip
    command.add_argument("--workflow", metavar="NAME", help="only what this workflow needs")
    command.add_argument("--download", metavar="NAME", help="fetch this file of the ledger")
    command.add_argument("--endpoint", metavar="URL", help="mirror of the hub to fetch it from")


def files(options: argparse.Namespace) -> None:
    """Write the report, or fetch one file; nothing else connects to the network."""
    from .report import everything, of_workflow

    folders = _folders(options.models)
    if options.download:
        lines = [_download(options.download, folders, options.endpoint)]
    elif options.workflow:
        lines = of_workflow(options.workflow, folders)
    else:
        lines = everything(folders)
    sys.stdout.write("\n".join(lines) + "\n")


def _folders(given: Sequence[Path] | None) -> list[Path]:
    """The given folders, or `models` of the host in whose `custom_nodes` this pack lies."""
    if given is None:
        pack = Path(__file__).resolve().parents[2]
        around = pack.parents[1] / "models"
        return [around] if pack.parent.name == "custom_nodes" and around.is_dir() else []
    for folder in given:
        if not folder.is_dir():
            raise CheckpointError(f"--models must name folders that exist; {folder} is none")
    return list(given)


def _download(name: str, folders: Sequence[Path], endpoint: str | None) -> str:
    from .download import download
    from .records import record

    if not folders:
        raise CheckpointError("--download needs --models DIR: the folder to put the file in")
    return f"{name} is at {download(record(name), folders[0], endpoint)}"
