"""One headless Chromium on the session's host, with ComfyUI's own page open in it."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from chromium import REMEDY, find_chromium
from shipped import FPS, FRAMES, HEIGHT, WIDTH
from tiny_media import write_media

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
IS_READY = (
    "() => window.app?.extensionManager && window.LiteGraph"
    " && Object.keys(LiteGraph.registered_node_types).length > 50"
)
LOAD = "async workflow => { await app.loadGraphData(workflow) }"


@dataclass
class OpenPage:
    """The page, what its console said, and where screenshots of it go."""

    page: object
    screenshots: Path
    errors: list[tuple[str, str]] = field(default_factory=list)  # (text, address of the script)

    def run(self, script: str, *values):
        return self.page.evaluate(script, *values)

    def load(self, workflow: dict) -> None:
        self.run(LOAD, workflow)

    def prompt(self) -> dict:
        """What the page would queue now."""
        return json.loads(
            self.run("async () => JSON.stringify((await app.graphToPrompt()).output)")
        )

    def screenshot(self, name: str) -> None:
        self.page.screenshot(path=self.screenshots / f"{name}.png")


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
def opened(chromium, running_host, models, tmp_path_factory) -> OpenPage:
    write_media(models.parent / "input", WIDTH, HEIGHT, FRAMES, FPS)
    page = chromium.new_page(viewport={"width": 1400, "height": 900})
    opened = OpenPage(page, tmp_path_factory.mktemp("screenshots"))
    page.on(
        "console",
        lambda m: m.type == "error" and opened.errors.append((m.text, m.location.get("url", ""))),
    )
    page.on("pageerror", lambda error: opened.errors.append((str(error), error.stack or "")))
    page.goto(running_host.url, wait_until="domcontentloaded")
    page.wait_for_function(IS_READY, timeout=90_000)
    return opened
