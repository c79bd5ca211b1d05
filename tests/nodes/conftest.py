"""The host inside the test process, with this pack loaded the way the host loads it."""

import importlib.util
import sys
from pathlib import Path

import pytest
from loaded_pack import nodes_of

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def pack(models):
    """This pack as a module, imported under a made-up name as the host does."""
    from host import find_host

    host = str(find_host())
    if host not in sys.path:
        sys.path.insert(0, host)  # the host owns the top-level names `nodes`, `comfy`, ...
    from comfy.cli_args import args

    args.cpu = True  # before anything asks for a device
    import folder_paths

    for folder in ("checkpoints", "text_encoders", "vae", "latent_upscale_models", "loras"):
        folder_paths.add_model_folder_path(folder, str(models / folder), is_default=True)
    folder_paths.set_output_directory(str(models.parent / "output"))
    spec = importlib.util.spec_from_file_location(
        "custom_nodes_x_aiprod", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def node_types(pack) -> dict:
    """Node id -> node class."""
    return nodes_of(pack)
