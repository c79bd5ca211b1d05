"""Every node explains itself: help page, tooltips, German texts; every workflow has a picture."""

import json
import re
from pathlib import Path

import pytest
from graphs import GRAPHS
from messages import sentences
from PIL import Image
from thumbnails import DIAGRAMS
from workflow_form import input_definitions, is_widget

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = ROOT / "web" / "docs"
LARGEST_THUMBNAIL = 30_000
LONGEST_PAGE = 50  # lines: one screen


@pytest.fixture(scope="session")
def own_nodes(object_info) -> dict:
    return {name: info for name, info in object_info.items() if name.startswith("AIPROD")}


def test_every_node_has_a_help_page_and_no_page_is_left_over(own_nodes):
    assert {page.stem for page in PAGES.glob("*.md")} == set(own_nodes)


def test_help_pages_name_every_input_and_output(own_nodes):
    for name, info in own_nodes.items():
        text = (PAGES / f"{name}.md").read_text()
        assert text.startswith(f"# {info['display_name']}\n"), name
        assert len(text.splitlines()) <= LONGEST_PAGE, name
        assert "**Memory.**" in text, name
        named = set(re.findall(r"`([^`\n]+)`", text))
        missing = {*input_definitions(info), *info["output_name"]} - named
        assert not missing, f"{name}: the page is silent about {missing}"


def test_messages_quoted_by_help_pages_exist():
    for page in PAGES.glob("*.md"):
        _, _, trouble = page.read_text().partition("**If it stops**")
        for message in re.findall(r'"([^"]+)"', trouble.replace("\n ", "")):
            for piece in message.split("…"):
                assert piece.strip(" .;:") in sentences(), f"{page.name}: {message}"


def test_every_widget_has_a_tooltip(own_nodes):
    for name, info in own_nodes.items():
        for field, (kind, options, _) in input_definitions(info).items():
            if is_widget(kind, options):
                assert options.get("tooltip"), f"{name}.{field}"


def test_the_german_texts_cover_every_schema_and_nothing_else(own_nodes):
    german = json.loads((ROOT / "locales/de/nodeDefs.json").read_text())
    assert set(german) == set(own_nodes)
    for name, info in own_nodes.items():
        texts, inputs = german[name], input_definitions(info)
        assert texts["display_name"], name
        assert texts["description"], name
        assert set(texts["inputs"]) == set(inputs), name
        assert set(texts["outputs"]) == {str(i) for i in range(len(info["output"]))}, name
        for field, (_, options, _) in inputs.items():
            entry = texts["inputs"][field]
            assert entry["name"], f"{name}.{field}"
            assert bool(entry.get("tooltip")) == bool(options.get("tooltip")), f"{name}.{field}"


def test_every_workflow_has_a_small_square_thumbnail():
    names = {graph.name for graph in GRAPHS}
    assert set(DIAGRAMS) == names
    assert {path.stem for path in (ROOT / "workflows").glob("*.jpg")} == names
    for name in names:
        path = ROOT / "workflows" / f"{name}.jpg"
        assert path.stat().st_size < LARGEST_THUMBNAIL
        with Image.open(path) as picture:
            assert picture.width == picture.height
