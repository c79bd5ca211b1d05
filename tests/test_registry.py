"""What a registry and a careful user look at before they install the pack."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHIPPED = sorted([ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"),
                  *(ROOT / "aiprod_engine").rglob("*.py")])  # fmt: skip
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.environ.get", "os.getenv",
    "torch.load", "torch.hub.load", "yaml.load", "pip.main",
}  # fmt: skip
FORBIDDEN_IMPORTS = {
    "pickle", "marshal", "shelve", "dill", "subprocess", "socket", "urllib", "requests", "http",
    "ftplib", "multiprocessing", "pip", "ctypes",
}  # fmt: skip
WORKFLOW_FOLDERS = ("example_workflows", "example", "examples", "workflow", "workflows")


def name(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0].lower()


def test_project_metadata_is_what_the_registry_takes():
    assert re.fullmatch(r"[a-z][a-z0-9._-]{0,98}", PROJECT["name"])
    assert "comfyui" not in PROJECT["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    assert 20 < len(PROJECT["description"]) < 200
    assert (ROOT / PROJECT["license"]["file"]).is_file()
    assert (ROOT / PROJECT["readme"]).is_file()
    comfy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["comfy"]
    assert comfy["requires-comfyui"].startswith(">=")
    assert "web" not in comfy, "the scripts would run twice: WEB_DIRECTORY names the folder"
    assert comfy["PublisherId"]
    assert comfy["DisplayName"]


def test_dependencies_do_not_fight_the_host():
    for requirement in PROJECT["dependencies"]:
        assert not re.search(r"==|<|~=", requirement), f"{requirement}: the host pins, not the pack"
        assert name(requirement) not in {"torch", "torchvision", "torchaudio"}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    installed = {name(line) for line in lines if line and not line.startswith("#")}
    assert installed <= {name(requirement) for requirement in PROJECT["dependencies"]}


def test_the_host_finds_scripts_help_and_one_folder_of_workflows():
    assert 'WEB_DIRECTORY = "./web"' in (ROOT / "__init__.py").read_text()
    found = [folder for folder in WORKFLOW_FOLDERS if (ROOT / folder).exists()]
    assert found == ["workflows"], "files of a second folder would be listed and not served"
    assert not (ROOT / "locales" / "en").exists(), "it would override the schemas"
    for script in (ROOT / "web").rglob("*.js"):
        longest = max(len(line) for line in script.read_text().splitlines())
        assert longest <= 120, f"{script.name} looks minified"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_shipped_file_runs_data_or_opens_a_connection(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN_CALLS, f"line {node.lineno}"
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module]
        assert not {module.split(".")[0] for module in modules} & FORBIDDEN_IMPORTS


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_pack_and_engine_is_quick_and_leaves_torch_alone():
    for target in ("__init__", "aiprod_engine"):
        seconds = run(
            f"import sys, time; begun = time.perf_counter(); import {target};"
            "print(time.perf_counter() - begun);"
            "assert not {'torch', 'numpy', 'transformers', 'av', 'comfy'} & set(sys.modules)"
        )
        assert float(seconds) < 0.3  # the host logs it, and every start of the host waits for it


def test_importing_all_of_the_engine_runs_no_program_and_no_connection():
    run("""
import importlib, pkgutil, sys

import numpy, torch, safetensors.torch, av, PIL.Image  # what they do is theirs

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        raise SystemExit(f"{event} {arguments}")

sys.addaudithook(watch)
import aiprod_engine
for module in pkgutil.walk_packages(aiprod_engine.__path__, "aiprod_engine."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
""")
