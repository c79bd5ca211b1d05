"""Shared set-up. The repository goes to the *end* of `sys.path`: the host owns `nodes`."""

import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
for entry in (TESTS, TESTS.parent / "tools", TESTS.parent):
    if str(entry) not in sys.path:
        sys.path.append(str(entry))


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the fixtures were recorded with one thread


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A `models` folder with tiny 2.0 and 2.3 files under the names of the published ones."""
    from host import make_base
    from tiny_checkpoint import write_models

    base = make_base(tmp_path_factory.mktemp("base"))
    write_models(base / "models", "2.0", "2.3")
    return base / "models"


@pytest.fixture(scope="session")
def running_host(models):
    """A real ComfyUI on the CPU with this pack and the tiny models; a failure to get it fails."""
    from host import run_host

    with run_host(models.parent) as running:
        yield running


@pytest.fixture(scope="session")
def previewing(models, tmp_path_factory):
    """A second host with the same models, on which the user has switched live previews on."""
    from host import make_base, run_host

    base = make_base(tmp_path_factory.mktemp("previewing"))
    for file in models.glob("*/*.safetensors"):
        (base / "models" / file.relative_to(models)).symlink_to(file)
    with run_host(base, extra=("--preview-method", "latent2rgb")) as running:
        yield running


@pytest.fixture(scope="session")
def client(running_host):
    from host_client import HostClient

    return HostClient(running_host.url)


@pytest.fixture(scope="session")
def object_info(client) -> dict:
    """The host's node definitions."""
    return client.get("/object_info")
