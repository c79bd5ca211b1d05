"""Writes `workflows/<name>.json` (UI form) and `workflows/api/<name>.json` (API form).

Run `python tools/workflows.py`: it starts the host once to learn the node definitions.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # appended: the host owns a module called `nodes`

from graphs import GRAPHS  # noqa: E402
from host import run_host  # noqa: E402
from host_client import HostClient  # noqa: E402
from workflow_form import to_api, to_ui  # noqa: E402

FOLDER = ROOT / "workflows"


def forms(object_info: dict) -> dict[Path, str]:
    """Every workflow file below `workflows/` and the text it must have."""
    files = {}
    for graph in GRAPHS:
        ui = to_ui(graph, object_info)
        files[FOLDER / f"{graph.name}.json"] = json.dumps(ui, indent=1) + "\n"
        api = to_api(ui, object_info)  # with every widget's value, also where a graph is silent
        files[FOLDER / "api" / f"{graph.name}.json"] = json.dumps(api, indent=1) + "\n"
    return files


def main() -> None:
    with tempfile.TemporaryDirectory() as base, run_host(Path(base)) as running:
        object_info = HostClient(running.url).get("/object_info")
    for path, text in forms(object_info).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
