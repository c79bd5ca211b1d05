"""The configurations that the published files carry, for files that carry none."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from .identity.info import GENERATIONS


def preset(section: str, version: str | None) -> dict[str, Any]:
    """A fresh copy of the published `section` for the first version that `version` names.

    Sections that did not change are stored once; a version without its own takes the newest older
    one. An unknown version (an audio VAE alone) takes the oldest. No section: an empty one.
    """
    versions = _table().get(section, {})
    wanted = (version or GENERATIONS[0]).partition("|")[0]
    known = [name for name in versions if name <= wanted]
    return _resolved(versions, known[-1]) if known else {}


def _resolved(versions: dict[str, dict], version: str) -> dict[str, Any]:
    own = json.loads(json.dumps(versions[version]))
    base = own.pop("like", None)
    return {**_resolved(versions, base), **own} if base else own


@cache
def _table() -> dict[str, dict[str, dict]]:
    return json.loads(Path(__file__).with_name("presets.json").read_text(encoding="utf-8"))
