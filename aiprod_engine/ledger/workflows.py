"""Which files a shipped workflow names."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import CheckpointError
from ..weights.containers.header import SUFFIXES, short

# The API forms lie in the pack beside the engine.
SHIPPED = Path(__file__).resolve().parents[2] / "workflows" / "api"


def workflow_names(folder: Path = SHIPPED) -> list[str]:
    """Names of the shipped workflows; none where the engine is used without the pack."""
    return sorted(path.stem for path in folder.glob("*.json"))


def files_of(workflow: str, folder: Path = SHIPPED) -> list[str]:
    """Weight files that a workflow's widgets name, in the order of its nodes."""
    if workflow not in workflow_names(folder):
        known = ", ".join(workflow_names(folder)) or "none in this installation"
        raise CheckpointError(
            f"a workflow must be a shipped one; {short(workflow)} is not: known are {known}"
        )
    nodes = json.loads((folder / f"{workflow}.json").read_text(encoding="utf-8"))
    values = (value for node in nodes.values() for value in node["inputs"].values())
    named = (v for v in values if isinstance(v, str) and v.lower().endswith(SUFFIXES))
    return list(dict.fromkeys(named))


def workflows_naming(name: str, folder: Path = SHIPPED) -> list[str]:
    """Shipped workflows that need a file."""
    return [workflow for workflow in workflow_names(folder) if name in files_of(workflow, folder)]
