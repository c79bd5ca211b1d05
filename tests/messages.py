"""Every text that nodes and engine can show, read from their source."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@cache
def sentences() -> str:
    """All text in the source of nodes and engine; f-strings are split at their values."""
    files = [*(ROOT / "nodes").glob("*.py"), *(ROOT / "aiprod_engine").rglob("*.py")]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    constants = (node.value for node in nodes if isinstance(node, ast.Constant))
    return "\n".join(value for value in constants if isinstance(value, str))
