"""UI and API files are the same graphs, fit the host, and come out of the generator unchanged."""

import json

import pytest
from graphs import GRAPHS
from workflow_form import check, to_api

from workflows import FOLDER, forms

pytestmark = pytest.mark.host
NAMES = [graph.name for graph in GRAPHS]
MOST_NODES = 15


def test_files_are_what_the_generator_writes(object_info):
    wanted = forms(object_info)
    assert set(FOLDER.rglob("*.json")) == set(wanted)
    for path, text in wanted.items():
        assert path.read_text() == text, f"run python tools/workflows.py ({path.name} is old)"


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_are_one_graph(name, object_info):
    ui = json.loads((FOLDER / f"{name}.json").read_text())
    api = json.loads((FOLDER / "api" / f"{name}.json").read_text())
    assert to_api(ui, object_info) == api


@pytest.mark.parametrize("name", NAMES)
def test_fits_the_hosts_node_definitions(name, object_info):
    api = json.loads((FOLDER / "api" / f"{name}.json").read_text())
    assert check(api, object_info) == []
    assert len(api) <= MOST_NODES
    own = [n["class_type"] for n in api.values() if n["class_type"].startswith("AIPROD")]
    assert own, "a workflow of this pack uses its nodes"


@pytest.mark.parametrize("name", NAMES)
def test_seeds_stay_fixed_and_a_note_names_the_files(name, object_info):
    ui = json.loads((FOLDER / f"{name}.json").read_text())
    notes = [n["widgets_values"][0] for n in ui["nodes"] if n["type"] == "MarkdownNote"]
    api = json.loads((FOLDER / "api" / f"{name}.json").read_text())
    files = {
        v for n in api.values() for v in n["inputs"].values()
        if isinstance(v, str) and v.endswith(".safetensors")
    }  # fmt: skip
    offers = [m for n in ui["nodes"] for m in n["properties"].get("models", [])]
    assert {offer["name"] for offer in offers} == files
    for file in files:
        assert any(f"[{file}]" in note for note in notes), f"{file} is in no note"
    for offer in offers:  # what the page asks for before it offers a download
        assert offer["url"].startswith("https://huggingface.co/")
        assert offer["url"].endswith("/" + offer["name"])
        assert any(f"models/{offer['directory']}" in note for note in notes)
    for node in ui["nodes"]:
        assert "randomize" not in (node.get("widgets_values") or [])


def test_check_finds_what_a_host_would_refuse(object_info):
    api = json.loads((FOLDER / "api" / f"{NAMES[0]}.json").read_text())
    keys = {node["class_type"]: key for key, node in api.items()}
    api[keys["AIPRODEmptyLatent"]]["inputs"]["fps"] = 1000
    api[keys["AIPRODSampler"]]["inputs"]["model"] = [keys["AIPRODEmptyLatent"], 0]
    del api[keys["AIPRODDecodeVideo"]]["inputs"]["latent"]
    assert len(check(api, object_info)) == 3
