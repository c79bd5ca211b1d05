"""README and docs tell the truth: tables, picture, messages, paths, commands, names of files."""

import json
import re
from pathlib import Path

import pytest
from cards import FILES, MARKS, PAGES, plans, renewed, tensors
from graph_picture import PICTURE, drawn
from messages import sentences

from aiprod_engine.cli import main
from aiprod_engine.ledger.records import ledger

ROOT = Path(__file__).resolve().parent.parent
PAGES_OF_TEXT = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TROUBLE = [ROOT / "README.md", ROOT / "docs" / "troubleshooting.md"]
FOLDERS = ("aiprod_engine", "nodes", "tools", "docs", "benchmarks")
SIZES = {"F8_E4M3": 1, "BF16": 2, "F32": 4}
MODEL_FILE = re.compile(r"[A-Za-z][\w.-]+\.(?:safetensors|gguf)\b")


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def quoted(page: Path) -> list[str]:
    """Messages in the first column of the tables of a page."""
    rows = [row for row in page.read_text().splitlines() if row.startswith('| "')]
    return [message for row in rows for message in re.findall(r'"([^"]+)"', row.split("|")[1])]


@pytest.mark.parametrize("page", TROUBLE, ids=by_name)
def test_every_quoted_message_is_in_the_source(page):
    messages = quoted(page)
    assert len(messages) > 10
    for message in messages:
        for piece in filter(None, (part.strip(" .;:,") for part in message.split("…"))):
            assert len(piece) > 7, f"{message}: too short to be found"
            assert piece in sentences(), message


def test_no_message_is_explained_twice():
    messages = [message for page in TROUBLE for message in quoted(page)]
    assert len(messages) == len(set(messages))


def test_the_tables_of_cards_are_what_the_command_prints():
    found = plans()
    for page in PAGES:
        rows = renewed(page, found).partition(MARKS[0])[2].count("\n|")
        assert rows > 5
        assert page.read_text() == renewed(page, found), "run python tools/cards.py --write"


@pytest.mark.parametrize("name", FILES)
def test_the_planned_files_have_the_published_size(name):
    total = 0
    for _, kind, shape in tensors(name):
        cells = 1
        for side in shape:
            cells *= side
        total += cells * SIZES[kind]
    assert total == pytest.approx(ledger()[name].approximate_bytes, rel=0.02)


def test_the_picture_is_that_of_the_shipped_workflow():
    assert PICTURE.read_text() == drawn(), "run python tools/graph_picture.py"
    assert PICTURE.stat().st_size < 50_000
    assert str(PICTURE.relative_to(ROOT)) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES_OF_TEXT, ids=by_name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for path in re.findall(r"`([\w/.-]+/[\w.-]*)`", text):
        if not MODEL_FILE.search(path) and not path.startswith(("models/", "ComfyUI/")):
            places = (ROOT / path, ROOT / "aiprod_engine" / path, ROOT / f"{path}.py")
            assert any(place.exists() for place in places), path
    for file in re.findall(r"`(\w+\.(?:py|md))`", text):
        assert any(list((ROOT / folder).rglob(file)) for folder in FOLDERS), file


def test_the_architecture_names_every_room():
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    engine = ROOT / "aiprod_engine"
    rooms = {path.parent.name for path in engine.glob("*/__init__.py")} | {"preview", "nodes"}
    assert sorted(named) == sorted(rooms)


@pytest.mark.parametrize("page", PAGES_OF_TEXT, ids=by_name)
def test_commands_exist(page, capsys):
    text = page.read_text()
    for script in re.findall(r"python ([\w/]+\.py)", text):
        assert (ROOT / script).is_file(), script
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()
    for command, options in re.findall(r"python -m aiprod_engine (\w+)([^`\n]*)", text):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        offered = capsys.readouterr().out
        for option in re.findall(r"--[\w-]+", options.partition("#")[0]):
            assert option in offered, f"{command} {option}"


def notes_and_values() -> str:
    """All text of the shipped workflows."""
    return "\n".join(path.read_text() for path in (ROOT / "workflows").rglob("*.json"))


def tooltips() -> str:
    return "\n".join(path.read_text() for path in (ROOT / "nodes").glob("*.py"))


@pytest.mark.parametrize(
    "text",
    [
        *(pytest.param(path.read_text(), id=by_name(path)) for path in PAGES_OF_TEXT),
        *(pytest.param(path.read_text(), id=path.stem) for path in (ROOT / "web").rglob("*.md")),
        pytest.param(notes_and_values(), id="workflows"),
        pytest.param(tooltips(), id="nodes"),
        pytest.param((ROOT / "locales/de/nodeDefs.json").read_text(), id="German"),
    ],
)
def test_every_model_file_that_is_named_is_known_with_size_and_folder(text):
    for name in {match[0] for match in MODEL_FILE.finditer(text)}:
        assert name in ledger(), f"{name} is not in the ledger"
        assert ledger()[name].approximate_bytes, f"{name} has no size"
        assert ledger()[name].folder


def test_sizes_beside_names_in_the_readme_are_those_of_the_ledger():
    rows = re.findall(
        r"`([\w.-]+\.safetensors)`\s*\((\d+\.\d+) GB", (ROOT / "README.md").read_text()
    )
    assert rows
    for name, size in rows:
        assert float(size) == pytest.approx(ledger()[name].approximate_bytes / 1e9, abs=0.05), name


def test_the_table_of_workflows_names_every_workflow_and_nothing_else():
    text = (ROOT / "docs" / "pipelines.md").read_text()
    shipped = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    first = set(re.findall(r"^\| .* \| `(\w+)` \|", text, re.MULTILINE))
    second = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert first == second == shipped


def test_the_german_terms_are_the_same_everywhere():
    """One English name of an input, one German name; exceptions have another meaning."""
    german = json.loads((ROOT / "locales/de/nodeDefs.json").read_text())
    names: dict[str, set] = {}
    for node in german.values():
        for field, texts in node["inputs"].items():
            names.setdefault(field, set()).add(texts["name"])
    meant_twice = {"frame", "image", "images", "file"}
    assert {f: n for f, n in names.items() if len(n) > 1 and f not in meant_twice} == {}
