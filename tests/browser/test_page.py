"""What a person sees: ComfyUI's own page in a browser, with this pack on a real host."""

import json
from itertools import product

import pytest
from shipped import FRAMES, HEIGHT, WIDTH

from aiprod_engine import timing

pytestmark = [pytest.mark.host, pytest.mark.browser]

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
    (queued,) = opened.prompt().values()
    assert set(queued["inputs"]) == {"file", "fits_with"}


def test_every_family_has_a_colour(opened, object_info):
    own = [name for name in object_info if name.startswith("AIPROD")]
    plain = {n for n in own if not opened.run("type => LiteGraph.createNode(type).color", n)}
    assert {object_info[name]["category"] for name in plain} <= {"AIPROD/interop"}


def test_wires_have_the_colours_of_the_hosts_own(opened, object_info):
    opened.run(ADD, ["AIPRODEmptyLatent", {}])
    kinds = {kind for info in object_info.values() for kind in info["output"]}
    own = [kind for kind in kinds if str(kind).startswith("AIPROD_")]
    assert own
    for kind in own:
        assert opened.run("kind => LGraphCanvas.link_type_colors[kind]", kind), kind
        style = "kind => getComputedStyle(document.documentElement).getPropertyValue(kind)"
        assert opened.run(style, f"--color-datatype-{kind}"), kind


def test_help_pages_and_translations_reach_the_page(opened, object_info):
    for name in (name for name in object_info if name.startswith("AIPROD")):
        script = "async path => (await fetch(path)).status"
        assert opened.run(script, f"/extensions/aiprod/docs/{name}.md") == 200, name
    german = opened.run("async () => (await (await fetch('/i18n')).json()).de.nodeDefs")
    assert german["AIPRODSampler"]["display_name"]


def test_no_script_of_this_pack_complains(opened):
    """Last in this file: the console of everything above."""
    assert opened.own_errors() == []
