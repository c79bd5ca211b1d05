"""The fixtures themselves: none is without a test."""

import ast
from fnmatch import fnmatch
from pathlib import Path

from goldens import ROOT

TESTS = Path(__file__).parent


def _named_patterns() -> set[str]:
    """Every string constant of the tests that could name a fixture."""
    constants = set()
    for path in TESTS.rglob("test_*.py"):
        if path != Path(__file__):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    constants.add(node.value)
    return {c for c in constants if "/" in c or c.endswith((".json", ".safetensors", ".gguf"))}


def test_every_fixture_is_used_by_a_test():
    patterns = _named_patterns()
    areas = {pattern for pattern in patterns if pattern.endswith("/*")}
    assert not areas, f"name fixtures more closely than {areas}"
    unused = []
    for path in sorted(ROOT.rglob("*")):
        if path.suffix not in (".safetensors", ".json", ".gguf") or "files" in path.parts:
            continue
        name = path.relative_to(ROOT).as_posix()
        names = (name, name.removesuffix(".safetensors"), path.name)
        if not any(fnmatch(n, pattern) for n in names for pattern in patterns):
            unused.append(name)
    assert not unused, f"no test uses {unused}"
