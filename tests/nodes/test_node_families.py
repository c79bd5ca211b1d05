"""Loading of the families: all, without network, and one that fails takes no other along."""

import importlib.util
import logging
import re
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest
from loaded_pack import nodes_of

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = {path.stem for path in (ROOT / "nodes").glob("[!_]*.py")}


@pytest.fixture
def fresh(pack):
    """The pack once more, under a name of its own; nothing of its nodes is imported yet."""
    spec = importlib.util.spec_from_file_location(
        "custom_nodes_x_again", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == spec.name]:
        del sys.modules[name]


def node_ids(pack) -> set[str]:
    return set(nodes_of(pack))


def ids_of(family: str) -> set[str]:
    """Node ids of a family, from the pack that loaded undisturbed."""
    nodes = sys.modules[f"custom_nodes_x_aiprod.nodes.{family}"].NODES
    return {node.define_schema().node_id for node in nodes}


def test_every_file_of_nodes_is_a_family_that_loads(fresh, caplog):
    found = node_ids(fresh)
    assert caplog.records == []
    families = sys.modules[f"{fresh.__name__}.nodes"].FAMILIES
    assert set(families) == FILES
    loaded = [sys.modules[f"{fresh.__name__}.nodes.{family}"].NODES for family in families]
    assert len(found) == sum(map(len, loaded))


def test_loading_the_nodes_opens_no_connection(fresh, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert node_ids(fresh)


def test_a_family_that_cannot_be_imported_is_logged_and_the_rest_loads(fresh, node_types, caplog):
    sys.modules[f"{fresh.__name__}.nodes.guiders"] = None  # what Python raises on: ImportError
    with caplog.at_level(logging.ERROR, "aiprod"):
        found = node_ids(fresh)
    assert set(node_types) - found == ids_of("guiders")
    (record,) = caplog.records
    assert "guiders" in record.getMessage()
    assert record.exc_info, "the traceback says where"


def test_a_family_with_a_broken_schema_is_left_out(fresh, node_types, caplog):
    class Broken:
        @classmethod
        def GET_SCHEMA(cls):  # noqa: N802 - the host's name
            raise TypeError("this host knows no such field")

    family = ModuleType(f"{fresh.__name__}.nodes.upscale")
    family.NODES = [Broken]
    sys.modules[family.__name__] = family
    with caplog.at_level(logging.ERROR, "aiprod"):
        found = node_ids(fresh)
    assert set(node_types) - found == ids_of("upscale")
    assert "upscale" in caplog.text


def test_a_family_that_fails_is_explained_with_what_the_package_asks_for(pack, node_types):
    missing = sys.modules[f"{pack.__name__}.nodes._missing"]
    project = (ROOT / "pyproject.toml").read_text()
    assert f'requires-comfyui = ">={missing.OLDEST_HOST}"' in project
    needed = re.search(r"^dependencies = \[(.*)\]", project, re.MULTILINE)[1]
    assert set(missing.PACKAGES.values()) == set(re.findall(r'"([\w-]+)', needed))
    for module, package in missing.PACKAGES.items():
        error = ModuleNotFoundError(f"No module named '{module}'", name=f"{module}.part")
        assert f"pip install {package}`" in missing.sentence("decode", error)
    for error in (
        ModuleNotFoundError("No module named 'comfy.gone'", name="comfy.gone"),
        ImportError("cannot import name 'x' from 'av'", name="av"),
        TypeError("two\nlines."),
    ):
        text = missing.sentence("decode", error)
        assert "update AIPROD, and ComfyUI" in text
        assert "\n" not in text
