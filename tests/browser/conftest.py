"""One headless Chromium on a host with live previews, with ComfyUI's own page open in it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from chromium import REMEDY, find_chromium
from host_client import HostClient
from shipped import FPS, FRAMES, HEIGHT, WIDTH
from tiny_media import write_media

SCREENSHOTS = Path(__file__).resolve().parents[2] / "output" / "screenshots"  # ignored by git
PATIENCE = 120_000  # milliseconds; a busy machine is slow, not wrong
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)  # fmt: skip
IS_READY = (
    "() => window.app?.extensionManager && window.LiteGraph"
    " && Object.keys(LiteGraph.registered_node_types).length > 50"
)
LOAD = "async workflow => { await app.loadGraphData(workflow) }"
SET = """inputs => app.graph._nodes.forEach(node => node.widgets?.forEach(widget => {
    const value = inputs[node.id]?.inputs[widget.name]
    if (value === undefined || Array.isArray(value)) return
    widget.value = value
    widget.callback?.(value)
}))"""
# everything that the host says to this page, and the size of every picture that it sends
LISTEN = """async () => {
    const { api } = await import("/scripts/api.js")
    window.seen = []
    for (const type of ["progress", "progress_text", "executed", "execution_start",
                        "execution_error", "execution_interrupted", "execution_success"])
        api.addEventListener(type, ({ detail }) => window.seen.push([type, detail]))
    api.addEventListener("b_preview", async ({ detail }) => {
        const picture = await createImageBitmap(detail)
        window.seen.push(["picture", [picture.width, picture.height]])
    })
}"""
HAS_SEEN = "types => window.seen.some(([type]) => types.includes(type))"
ENDS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass
class OpenPage:
    """The page, the host behind it, and what its console said."""

    page: object
    base: Path
    client: HostClient
    errors: list[tuple[str, str]] = field(default_factory=list)  # (text, address of the script)

    def run(self, script: str, *values):
        return self.page.evaluate(script, *values)

    def wait(self, script: str, value=None) -> None:
        """Until the script says yes."""
        self.page.wait_for_function(script, arg=value, timeout=PATIENCE)

    def load(self, workflow: dict) -> None:
        self.run(LOAD, workflow)

    def browse(self):
        """The template browser with this pack's workflows."""
        self.page.get_by_role("dialog").wait_for(state="detached")  # a former one
        self.run("() => { app.extensionManager.command.execute('Comfy.BrowseTemplates') }")
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_text("aiprod").first.click(timeout=PATIENCE)
        return dialog

    def choose(self, dialog, name: str) -> None:
        """A workflow in the template browser, as a user clicks; returns when the page shows it."""
        before = self.run("() => app.graph.id")
        dialog.get_by_text(name, exact=True).first.click(timeout=PATIENCE)
        dialog.wait_for(state="detached", timeout=PATIENCE)
        self.wait("before => app.graph.id !== before && app.graph._nodes.length > 5", before)

    def set_widgets(self, prompt: dict) -> None:
        self.run(SET, prompt)

    def prompt(self) -> dict:
        """What the page would queue now."""
        return json.loads(
            self.run("async () => JSON.stringify((await app.graphToPrompt()).output)")
        )

    def press_run(self) -> None:
        self.run("() => { window.seen = [] }")
        self.page.get_by_role("button", name="Run", exact=True).first.click(timeout=PATIENCE)

    def wait_for(self, *types: str) -> None:
        """Until the host has sent a message of one of these types since Run was pressed."""
        self.wait(HAS_SEEN, list(types))

    def seen(self, kind: str) -> list:
        return [detail for found, detail in self.run("() => window.seen") if found == kind]

    def own_errors(self) -> Iterable[tuple[str, str]]:
        return [error for error in self.errors if "/extensions/aiprod" in "".join(error)]

    def screenshot(self, name: str) -> None:
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


@pytest.fixture(scope="session")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = find_chromium()
    if path is None:
        pytest.skip(f"BROWSER TESTS DID NOT RUN: no Chromium was found; {REMEDY}")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def object_info(previewing) -> dict:
    """The node definitions of the host behind the page: in this folder there is no other one."""
    return HostClient(previewing.url).get("/object_info")


@pytest.fixture(scope="session")
def opened(chromium, previewing) -> OpenPage:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    write_media(previewing.base / "input", WIDTH, HEIGHT, FRAMES, FPS)
    page = chromium.new_page(viewport={"width": 1600, "height": 1000})
    opened = OpenPage(page, previewing.base, HostClient(previewing.url))
    page.on(
        "console",
        lambda m: m.type == "error" and opened.errors.append((m.text, m.location.get("url", ""))),
    )
    page.on("pageerror", lambda error: opened.errors.append((str(error), error.stack or "")))
    page.goto(previewing.url, wait_until="domcontentloaded")
    page.wait_for_function(IS_READY, timeout=PATIENCE)
    opened.run(LISTEN)
    return opened
