"""What a registry and a careful user look at before they install the pack."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, COMFY = SETTINGS["project"], SETTINGS["tool"]["comfy"]
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
MODULES = {"pillow": "PIL"}  # packages whose module has another name
# the host's own modules, torch with what it brings, and what only a download asks for
NOT_ASKED_FOR = {
    *("comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "server"),
    *("torch", "triton", "huggingface_hub"),
}
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
    assert COMFY["requires-comfyui"].startswith(">=")
    assert "web" not in COMFY, "the scripts would run twice: WEB_DIRECTORY names the folder"
    assert re.fullmatch(r"[a-z][a-z0-9-]*", COMFY["PublisherId"])
    assert COMFY["DisplayName"]
    for address in (*PROJECT.get("urls", {}).values(), COMFY.get("Icon", "https://")):
        assert address.startswith("https://")


@pytest.mark.host
def test_the_hosts_own_parser_takes_all_of_it():
    from host import find_host

    code = (
        "import sys; from comfy_config.config_parser import extract_node_configuration as read;"
        f"print(read({str(ROOT)!r}).model_dump_json())"
    )
    found = json.loads(run(code, cwd=find_host()))
    project, comfy = found["project"], found["tool_comfy"]
    assert (project["name"], project["version"]) == (PROJECT["name"], PROJECT["version"])
    assert project["supported_os"], "one that the host does not know drops them all"
    assert project["supported_accelerators"]
    assert project["supported_comfyui_version"] == COMFY["requires-comfyui"]
    assert comfy["publisher_id"] == COMFY["PublisherId"]
    assert comfy["web"] is None


def test_dependencies_do_not_fight_the_host():
    for requirement in PROJECT["dependencies"]:
        assert not re.search(r"==|<|~=", requirement), f"{requirement}: the host pins, not the pack"
        assert name(requirement) not in {"torch", "torchvision", "torchaudio"}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    installed = [line for line in lines if line and not line.startswith("#")]
    assert installed == PROJECT["dependencies"]


def test_dependencies_are_what_shipped_files_import():
    imported = {module.split(".")[0] for path in SHIPPED for _, module in absolute_imports(path)}
    imported -= set(sys.stdlib_module_names) | NOT_ASKED_FOR
    asked = {name(requirement) for requirement in PROJECT["dependencies"]}
    assert imported == {MODULES.get(package, package) for package in asked}


def test_the_host_finds_scripts_help_and_one_folder_of_workflows():
    assert 'WEB_DIRECTORY = "./web"' in (ROOT / "__init__.py").read_text()
    found = [folder for folder in WORKFLOW_FOLDERS if (ROOT / folder).exists()]
    assert found == ["workflows"], "files of a second folder would be listed and not served"
    assert not (ROOT / "locales" / "en").exists(), "it would override the schemas"
    for script in (ROOT / "web").rglob("*.js"):
        longest = max(len(line) for line in script.read_text().splitlines())
        assert longest <= 120, f"{script.name} looks minified"


def absolute_imports(path: Path) -> list[tuple[int, str]]:
    """(line, dotted module) of every import that is not relative."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append((node.lineno, node.module))
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_shipped_file_runs_data_or_opens_a_connection(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN_CALLS, f"line {node.lineno}"
    for line, module in absolute_imports(path):
        assert module.split(".")[0] not in FORBIDDEN_IMPORTS, f"line {line}"


def run(code: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
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


@pytest.mark.host
def test_loading_every_node_takes_the_host_less_than_half_a_second(tmp_path):
    """Seconds of this process, once Python has compiled the files: other load does not count."""
    from host import find_host

    code = f"""
import asyncio, importlib.util, sys, time
from comfy.cli_args import args
args.cpu = True
import av, PIL.Image, comfy_api.latest, comfy.model_management, comfy.utils, latent_preview

place = {str(ROOT)!r}
sys.dont_write_bytecode, sys.pycache_prefix = False, {str(tmp_path)!r}

async def load(name):
    spec = importlib.util.spec_from_file_location(
        name, place + "/__init__.py", submodule_search_locations=[place])
    pack = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    assert len(await (await pack.comfy_entrypoint()).get_node_list()) > 40

for name in ("compiles", "again", "once_more"):
    begun = time.process_time()
    asyncio.run(load(name))
    print(time.process_time() - begun)
"""
    seconds = run(code, cwd=find_host()).split()[-3:]
    assert min(map(float, seconds)) < 0.5


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
