"""A family of nodes that fails takes no other along, and the user sees which and why.

The host runs a copy of what the registry packs, without tests and tools, with two broken families.
"""

import json
import shutil
from pathlib import Path

import pytest
from host import make_base, run_host
from host_client import HostClient, PromptRejected

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parent.parent.parent
ID = "AIPRODMissingNodes"
BROKEN = {
    # what a removed function of the host looks like, and a schema that the host does not know
    "decode": "from comfy_api.latest import something_removed\n",
    "guiders": "from ._missing import OLDEST_HOST\nNODES = [OLDEST_HOST]\n",
}
LOST = {"DecodeVideo", "DecodeAudio", "DecodeToVideo", "Guider", "CFGGuider", "APGGuider"}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A running host with a damaged copy of the pack."""
    base = tmp_path_factory.mktemp("broken")
    pack = base / "custom_nodes" / "aiprod"
    left_out = (line.strip("/") for line in (ROOT / ".comfyignore").read_text().split())
    ignore = shutil.ignore_patterns(*left_out, ".*", "__pycache__", "output")
    shutil.copytree(ROOT, pack, ignore=ignore)
    assert not (pack / "tests").exists()
    for family, text in BROKEN.items():
        (pack / "nodes" / f"{family}.py").write_text(text)
    with run_host(make_base(base)) as running:
        yield running


def test_the_other_families_load(broken, object_info):
    found = HostClient(broken.url).get("/object_info")
    before, after = ({n for n in nodes if n.startswith("AIPROD")} for nodes in (object_info, found))
    assert before - after == {f"AIPROD{name}" for name in LOST}
    assert after - before == {ID}, "in a healthy pack this node does not exist"


def test_the_log_names_family_exception_and_remedy(broken):
    log = broken.log_text()
    for family in BROKEN:
        (line,) = (row for row in log.splitlines() if f"of family {family} could" in row)
        assert "update AIPROD, and ComfyUI to 0.3.75 or newer" in line
    assert "(ImportError: cannot import name 'something_removed' from 'comfy_api.latest'" in log
    assert "Traceback" in log


def test_clients_without_a_page_see_it_too(broken):
    client = HostClient(broken.url)
    text = client.get("/object_info")[ID]["description"]
    assert text.count("could not be loaded") == len(BROKEN)
    workflow = json.loads((ROOT / "workflows/api/text_to_video.json").read_text())
    with pytest.raises(PromptRejected):
        client.run(workflow)


@pytest.mark.browser
def test_the_page_says_it_in_a_message(broken, chromium):
    page = chromium.new_page()
    page.goto(broken.url, wait_until="domcontentloaded")
    message = page.locator(".p-toast-message").filter(has_text="AIPROD: nodes are missing")
    message.wait_for(timeout=90_000)
    assert "of family decode could not be loaded" in message.inner_text()
    page.wait_for_timeout(8_000)
    assert message.is_visible(), "it stays until it is closed"
    page.close()
