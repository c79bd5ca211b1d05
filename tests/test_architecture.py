"""Who may import whom, read from the source; and the engine works where no ComfyUI exists."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "aiprod_engine"

# A room may import itself and the rooms listed here.
BASE = {"types", "errors", "timing"}
ROOMS = {"models", "latents", "sampling", "tiling", "memory", "media", "weights"}
MAY_IMPORT = {
    "types": set(),
    "errors": set(),
    "timing": {"errors"},
    "models": BASE,
    "latents": BASE,
    "sampling": BASE,
    "tiling": BASE,
    "memory": BASE,
    "media": BASE,
    "weights": BASE | {"models"},
    "pipelines": BASE | ROOMS,
    "preview": BASE | ROOMS,
    "ledger": {"errors", "weights"},
    "generate": BASE | ROOMS | {"pipelines"},
}
HOST_MODULES = {"comfy", "folder_paths", "latent_preview", "comfy_execution", "server", "execution"}


def imports(path: Path) -> list[tuple[int, str]]:
    """(relative level, dotted module) of every import in a file; `from . import a` gives a."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.module is None:
                found += [(node.level, alias.name) for alias in node.names]
            else:
                found.append((node.level, node.module))
    return found


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of engine and nodes."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in ("aiprod_engine", "nodes")
        for path in (ROOT / package).rglob("*.py")
    }


def own_imports(name: str, path: Path) -> set[str]:
    """Modules of ours that a module imports, also late ones and those for types alone."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            target = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            inner = {f"{target}.{alias.name}" for alias in node.names}
            found |= {module if module in modules() else target for module in inner}
    return found - {name}


def engine_rooms(path: Path) -> list[str]:
    """Rooms of the engine that an engine file imports."""
    here = path.relative_to(ENGINE).with_suffix("").parts[:-1]
    rooms = []
    for level, module in imports(path):
        if level:
            target = (*here[: len(here) - (level - 1)], *module.split("."))
            rooms.append(target[0])
    return rooms


@pytest.mark.parametrize(
    "path", sorted(ENGINE.rglob("*.py")), ids=lambda p: str(p.relative_to(ENGINE))
)
def test_engine_imports_point_left(path):
    room = path.relative_to(ENGINE).with_suffix("").parts[0]
    for level, module in imports(path):
        assert level or not module.startswith(("aiprod_engine", "nodes")), "relative imports only"
        assert module.split(".")[0] not in HOST_MODULES | {"comfy_api"}, "the engine knows no host"
    if room not in ("__init__", "__main__", "cli"):  # the doors of the house
        assert set(engine_rooms(path)) <= MAY_IMPORT[room] | {room}


@pytest.mark.parametrize("path", sorted((ROOT / "nodes").glob("*.py")), ids=lambda p: p.name)
def test_only_one_node_file_imports_the_host(path):
    for level, module in imports(path):
        top = module.split(".")[0]
        assert level or not top.startswith("aiprod"), "relative imports only"
        if path.name != "_host.py" and not level:
            assert top not in HOST_MODULES


def test_no_module_imports_itself_through_others():
    graph = {name: own_imports(name, path) for name, path in modules().items()}
    while free := {name for name, wanted in graph.items() if not wanted & graph.keys()}:
        graph = {name: wanted for name, wanted in graph.items() if name not in free}
    assert not graph, f"in a circle, or waiting for one: {sorted(graph)}"


def test_entry_module_never_defines_the_old_node_table():
    # with that name present, even empty, the host never calls comfy_entrypoint
    assert "NODE_CLASS_MAPPINGS" not in (ROOT / "__init__.py").read_text()


def test_importing_the_engine_is_light_and_needs_no_host():
    code = (
        "import sys, threading, importlib.util; import aiprod_engine, aiprod_engine.weights;"
        "spec = importlib.util.spec_from_file_location('pack', '__init__.py');"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec));"
        "assert not {'comfy', 'folder_paths', 'transformers', 'av'} & set(sys.modules);"
        "assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
