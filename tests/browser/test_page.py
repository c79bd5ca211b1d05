"""What a person sees: ComfyUI's own page in a browser, with this pack on a real host."""

import json
from itertools import product

import pytest
from graphs import GRAPHS
from shipped import FRAMES, HEIGHT, WIDTH, small

from aiprod_engine import timing
from workflows import FOLDER

pytestmark = [pytest.mark.host, pytest.mark.browser]

NAMES = [graph.name for graph in GRAPHS]
PLAYERS = {"audioUI", "video-preview"}
UNKNOWN_NODES = """() => app.graph._nodes.map(node => node.type)
    .filter(type => !LiteGraph.registered_node_types[type] && !type.endsWith("Note"))"""
OVERLAPS = """() => {
    const title = LiteGraph.NODE_TITLE_HEIGHT
    const covers = (a, b) =>
        a.pos[0] < b.pos[0] + b.size[0] && b.pos[0] < a.pos[0] + a.size[0] &&
        a.pos[1] - title < b.pos[1] + b.size[1] && b.pos[1] - title < a.pos[1] + a.size[1]
    const nodes = app.graph._nodes
    return nodes.flatMap((a, i) => nodes.slice(i + 1).filter(b => covers(a, b))
        .map(b => `${a.title} / ${b.title}`))
}"""
ADD = """([type, values]) => {
    app.graph.clear()
    const node = LiteGraph.createNode(type)
    app.graph.add(node)
    for (const widget of node.widgets) {
        if (!(widget.name in values)) continue
        widget.value = values[widget.name]
        widget.callback?.(widget.value)
    }
}"""
WIDGETS = "() => Object.fromEntries(app.graph._nodes[0].widgets.map(w => [w.name, w.value]))"
SAVED_VALUES = "() => app.graph._nodes[0].serialize().widgets_values"
WATCH = """async () => {
    const { api } = await import("/scripts/api.js")
    window.seen = []
    for (const type of ["progress", "executed", "execution_error", "execution_success"])
        api.addEventListener(type, event => window.seen.push([type, event.detail]))
}"""


def ui_form(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def api_form(name: str) -> dict:
    return json.loads((FOLDER / "api" / f"{name}.json").read_text())


def inputs(prompt: dict) -> dict:
    """Class and inputs of each node, without the players that the page adds to the host's own."""
    return {
        key: (node["class_type"], {k: v for k, v in node["inputs"].items() if k not in PLAYERS})
        for key, node in prompt.items()
    }


def test_the_template_browser_lists_the_workflows(opened, client):
    assert set(NAMES) <= set(client.get("/api/workflow_templates")["aiprod"])
    opened.run("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = opened.page.get_by_role("dialog")
    dialog.wait_for(timeout=20_000)
    dialog.get_by_text("aiprod").first.click(timeout=20_000)
    template = dialog.get_by_text("text_to_video_hq", exact=True).first
    template.wait_for(timeout=20_000)
    opened.screenshot("templates")
    template.click()
    dialog.wait_for(state="hidden", timeout=20_000)
    assert len(opened.prompt()) == len(api_form("text_to_video_hq"))


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_loads_and_would_be_queued_as_its_api_file(name, opened):
    opened.load(ui_form(name))
    assert opened.run(UNKNOWN_NODES) == []
    assert inputs(opened.prompt()) == inputs(api_form(name))
    assert opened.run(OVERLAPS) == []
    opened.run("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    opened.screenshot(name)


def test_a_workflow_runs_from_the_page(opened, client, running_host):
    wanted = small("text_to_video", "2.3")
    opened.load(ui_form("text_to_video"))
    opened.run(
        """inputs => app.graph._nodes.forEach(node => node.widgets?.forEach(widget => {
            const value = inputs[node.id]?.inputs[widget.name]
            if (value !== undefined && !Array.isArray(value)) widget.value = value
        }))""",
        wanted,
    )
    assert inputs(opened.prompt()) == inputs(wanted)
    opened.run(WATCH)
    opened.run("async () => { await app.queuePrompt(0, 1) }")
    opened.page.wait_for_function(
        "() => window.seen.some(([type]) => type.startsWith('execution_'))", timeout=120_000
    )
    seen = opened.run("() => window.seen")
    assert [event for event in seen if event[0] == "execution_error"] == []
    progress = [detail["value"] for kind, detail in seen if kind == "progress"]
    assert progress, "no progress arrived"
    outputs = [detail["output"] for kind, detail in seen if kind == "executed"]
    result = next(output["images"][0] for output in outputs if "images" in output)
    saved = running_host.base / "output" / result["subfolder"] / result["filename"]
    assert saved.stat().st_size > 0
    opened.page.wait_for_selector("video", state="attached", timeout=20_000)
    opened.screenshot("queued")


@pytest.mark.parametrize(
    ("size", "fps", "streams"),
    [
        *product([(768, 512, 121)], [24.0, 25.0], ["picture and sound", "picture", "sound"]),
        ((WIDTH, HEIGHT, FRAMES), 30.0, "picture and sound"),
        ((32, 32, 1), 60.0, "picture and sound"),  # 0.4 sound tokens: there is always one
        ((64, 32, 25), 10.0, "sound"),  # 62.5 sound tokens round to 62
    ],
)
def test_the_empty_latent_tells_length_and_tokens(size, fps, streams, opened):
    width, height, frames = size
    values = {"width": width, "height": height, "frames": frames, "fps": fps, "streams": streams}
    opened.run(ADD, ["AIPRODEmptyLatent", values])
    picture = timing.latent_frames(frames) * (width // 32) * (height // 32)
    sound = timing.audio_latents(frames, fps)
    tokens = (streams != "sound") * picture + (streams != "picture") * sound
    line = opened.run(WIDGETS)["clip"]
    assert line == f"{frames / fps:.2f} s, {tokens} tokens, on the grid"


def test_the_empty_latent_names_the_nearest_legal_size(opened):
    opened.run(ADD, ["AIPRODEmptyLatent", {}])
    opened.run("() => { app.graph._nodes[0].widgets[0].options.round = 1 }")
    script = """size => {
        const widgets = app.graph._nodes[0].widgets
        widgets.forEach(widget => { if (widget.name in size) widget.value = size[widget.name] })
        widgets.find(widget => widget.name === "fps").callback(24)
    }"""
    for size, text in (
        ({"width": 720}, "width: 704 or 736"),
        ({"width": 704, "height": 5}, "height: 32 or 64"),
        ({"height": 64, "frames": 120}, "frames: 113 or 121"),
    ):
        opened.run(script, size)
        assert opened.run(WIDGETS)["clip"].endswith(f"off the grid, {text}")


def test_lines_of_text_are_neither_saved_nor_queued(opened):
    opened.run(ADD, ["AIPRODEmptyLatent", {}])
    assert len(opened.run(SAVED_VALUES)) == 5
    assert "clip" not in json.dumps(opened.prompt())
    opened.run(ADD, ["AIPRODInspectFile", {}])
    opened.run("() => app.graph._nodes[0].onExecuted({ text: ['one', 'two'] })")
    assert opened.run(WIDGETS)["result"] == "one\ntwo"
    assert len(opened.run(SAVED_VALUES)) == 2
    ((_, queued),) = inputs(opened.prompt()).values()
    assert set(queued) == {"file", "fits_with"}


def test_every_family_has_a_colour(opened, object_info):
    own = [name for name in object_info if name.startswith("AIPROD")]
    plain = {n for n in own if not opened.run("type => LiteGraph.createNode(type).color", n)}
    assert {object_info[name]["category"] for name in plain} <= {"AIPROD/interop"}


def test_help_pages_and_translations_reach_the_page(opened, object_info):
    for name in (name for name in object_info if name.startswith("AIPROD")):
        script = "async path => (await fetch(path)).status"
        assert opened.run(script, f"/extensions/aiprod/docs/{name}.md") == 200, name
    german = opened.run("async () => (await (await fetch('/i18n')).json()).de.nodeDefs")
    assert german["AIPRODSampler"]["display_name"]


def test_no_script_of_this_pack_complains(opened):
    """Last in this file: the console of everything above."""
    own = [error for error in opened.errors if "/extensions/aiprod" in "".join(error)]
    assert own == []
