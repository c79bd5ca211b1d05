"""Each shipped workflow as a user meets it: template browser, Run, progress, preview, player."""

import json
from contextlib import contextmanager

import pytest
from graphs import GRAPHS
from shipped import FPS, FRAMES, WIDTH, small

from workflows import FOLDER

pytestmark = [pytest.mark.host, pytest.mark.browser]

NAMES = [graph.name for graph in GRAPHS]
CROWDED = ["text_to_video_hq", "first_last_frame", "image_to_video", "retake", "extend", "dub"]
ADDED_BY_THE_PAGE = {"audioUI", "video-preview"}  # players in the host's own nodes
HAS_THUMBNAIL = "name => [...document.images].some(i => i.alt === name && i.naturalWidth > 100)"
MISSING_NODES = """() => app.graph._nodes.map(node => node.type)
    .filter(type => !LiteGraph.registered_node_types[type] && !type.endsWith("Note"))"""
OVERLAPS = """() => {
    const title = LiteGraph.NODE_TITLE_HEIGHT
    const box = node => {
        const shown = document.querySelector(`[data-node-id="${node.id}"]`)
        const low = shown ? shown.offsetHeight - title : node.size[1]
        return [node.pos[0], node.pos[1] - title, node.pos[0] + node.size[0], node.pos[1] + low]
    }
    const covers = ([left, top, right, low], [l, t, r, w]) =>
        left < r && l < right && top < w && t < low
    const nodes = app.graph._nodes
    return nodes.flatMap((a, i) => nodes.slice(i + 1).filter(b => covers(box(a), box(b)))
        .map(b => `${a.title} / ${b.title}`))
}"""
OUTSIDE = """() => app.graph._nodes.filter(({ pos, size }) => !app.graph._groups.some(group => {
    const [left, top, width, height] = group._bounding
    return pos[0] >= left && pos[1] - LiteGraph.NODE_TITLE_HEIGHT >= top &&
        pos[0] + size[0] <= left + width && pos[1] + size[1] <= top + height
})).map(node => node.title)"""
# nodes of which a user with a window of this size sees nothing at first
UNSEEN = """() => {
    const { scale, offset } = app.canvas.ds
    const [right, low] = [app.canvas.canvas.clientWidth, app.canvas.canvas.clientHeight]
    const isSeen = ({ pos }) => pos.every((value, i) => (value + offset[i]) * scale > 0) &&
        (pos[0] + offset[0]) * scale < right - 100 && (pos[1] + offset[1]) * scale < low - 20
    return app.graph._nodes.filter(node => !isSeen(node)).map(node => node.title)
}"""
# a picture inside every node that samples, in either rendering of the page
HAS_PREVIEWS = """() => app.graph._nodes
    .filter(node => ["AIPRODSampler", "AIPRODExtend"].includes(node.type))
    .every(node => {
        const shown = `[data-node-id="${node.id}"] img[src^="blob:"]`
        const pictures = [...(node.imgs ?? []), ...document.querySelectorAll(shown)]
        return pictures.some(img => img.src.startsWith("blob:") && img.naturalWidth)
    })"""
ALL_DRAWN = """() => app.graph._nodes.every(
    node => document.querySelector(`[data-node-id="${node.id}"]`)?.offsetHeight > 60)"""
SAMPLERS = """() => app.graph._nodes
    .filter(node => ["AIPRODSampler", "AIPRODExtend"].includes(node.type)).map(node => node.id)"""
# the player of what was saved now, playing
PLAYS = """([kind, file]) => [...document.querySelectorAll(kind)].some(player => {
    if (!player.src.includes(encodeURIComponent(file))) return false
    player.muted = true
    if (player.paused && !player.ended) player.play()
    return player.currentTime > 0
})"""
PLAYER = """([kind, file]) => {
    const player = [...document.querySelectorAll(kind)]
        .find(player => player.src.includes(encodeURIComponent(file)))
    const { duration, videoWidth: width, webkitAudioDecodedByteCount: sound } = player
    return { duration, width, sound }
}"""


def api_form(name: str) -> dict:
    return json.loads((FOLDER / "api" / f"{name}.json").read_text())


def inputs(prompt: dict) -> dict:
    """Class and inputs of each node, without what the page adds to the host's own."""
    return {
        key: (
            node["class_type"],
            {k: v for k, v in node["inputs"].items() if k not in ADDED_BY_THE_PAGE},
        )
        for key, node in prompt.items()
    }


def test_the_template_browser_shows_every_workflow_with_its_picture(opened):
    dialog = opened.browse()
    for name in NAMES:
        dialog.get_by_text(name, exact=True).first.scroll_into_view_if_needed()
        opened.wait(HAS_THUMBNAIL, name)
    opened.screenshot("templates")
    opened.choose(dialog, NAMES[-1])


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_from_the_template_browser_to_its_player(name, opened):
    opened.choose(opened.browse(), name)
    assert opened.run(MISSING_NODES) == []
    assert inputs(opened.prompt()) == inputs(api_form(name))
    assert opened.run(OVERLAPS) == []
    assert opened.run(OUTSIDE) == []
    assert opened.run(UNSEEN) == []

    wanted = small(name, "2.3")
    opened.set_widgets(wanted)
    assert inputs(opened.prompt()) == inputs(wanted)
    opened.press_run()
    opened.wait_for("picture", "execution_success", "execution_error")
    opened.screenshot(f"{name}_running")
    opened.wait_for("execution_success", "execution_error")
    assert opened.seen("execution_error") == []
    check_progress(opened)
    if name != "text_to_audio":
        opened.wait(HAS_PREVIEWS)
        assert all(max(size) == 512 for size in opened.seen("picture"))
    check_player(name, opened)
    assert opened.run(OVERLAPS) == []  # now with pictures and players in the nodes
    opened.screenshot(f"{name}_finished")
    assert opened.own_errors() == []


def check_progress(opened):
    """Steps count up in every node that samples, and say how long the rest will take."""
    for sampler in map(str, opened.run(SAMPLERS)):
        steps = [p for p in opened.seen("progress") if str(p["node"]) == sampler]
        values = [p["value"] for p in steps]
        assert values == sorted(values)
        assert values[-1] == steps[-1]["max"]
        texts = [t["text"] for t in opened.seen("progress_text") if str(t["nodeId"]) == sampler]
        assert [t.partition(",")[0] for t in texts] == [
            f"step {k} of {len(texts)}" for k in range(1, len(texts) + 1)
        ]
        assert all(t.endswith(" left") for t in texts[:-1])


def check_player(name, opened):
    """The file that was saved last plays in the page, with its sound."""
    results = [detail["output"] or {} for detail in opened.seen("executed")]
    kind = "audio" if name == "text_to_audio" else "video"
    (saved,) = [r["images" if kind == "video" else "audio"][0] for r in results
                if r.keys() & {"images", "audio"} and _is_saved(r)]  # fmt: skip
    player = [kind, saved["filename"]]
    opened.wait(PLAYS, player)
    facts = opened.run(PLAYER, player)
    assert facts["sound"] > 0
    if name == "text_to_video":
        assert facts["duration"] == pytest.approx(FRAMES / FPS, abs=0.05)
        assert facts["width"] == WIDTH


def _is_saved(result: dict) -> bool:
    return any(file["type"] == "output" for file in result.get("images", result.get("audio")))


def test_cancel_ends_a_run_and_the_page_goes_on(opened):
    opened.choose(opened.browse(), "text_to_video")
    steps = 1000  # more than the test would wait for
    prompt = small("text_to_video", "2.3")
    (sampler,) = [k for k, n in prompt.items() if n["class_type"] == "AIPRODSampler"]
    for node in prompt.values():
        if node["class_type"] == "AIPRODSchedule":
            node["inputs"]["steps"] = steps
    opened.set_widgets(prompt)
    opened.press_run()
    opened.wait("() => window.seen.some(([type, it]) => type === 'progress' && it.max === 1000)")
    opened.page.get_by_role("button", name="Cancel current run").first.click()
    opened.wait_for("execution_interrupted", "execution_success", "execution_error")
    assert opened.seen("execution_interrupted")
    reached = [p["value"] for p in opened.seen("progress") if str(p["node"]) == sampler]
    assert reached[-1] < steps
    queue = opened.client.get("/queue")
    assert queue["queue_running"] == queue["queue_pending"] == []


@contextmanager
def newer_rendering(opened):
    script = "value => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', value)"
    opened.run(script, True)
    try:
        yield
    finally:
        opened.run(script, False)


def test_nodes_have_room_in_the_newer_rendering_too(opened):
    with newer_rendering(opened):
        for name in CROWDED:
            opened.load(json.loads((FOLDER / f"{name}.json").read_text()))
            opened.wait(ALL_DRAWN)
            assert opened.run(OVERLAPS) == [], name
            opened.screenshot(f"{name}_nodes_2")


def test_a_missing_file_is_named_with_its_folder_and_offered(opened):
    published, absent = "ltx-2.3-22b-distilled.safetensors", "ltx-2.3-22b-distilled-1.1.safetensors"
    text = (FOLDER / "text_to_video_distilled.json").read_text().replace(published, absent)
    opened.load(json.loads(text))
    dialog = opened.page.get_by_role("dialog")
    dialog.get_by_text(f"checkpoints / {absent}").wait_for()
    dialog.get_by_role("button", name="Download").wait_for()
    opened.screenshot("missing_file")
    opened.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    opened.press_run()
    dialog.get_by_text(f"'{absent}' is not in models/checkpoints").wait_for()
    opened.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
