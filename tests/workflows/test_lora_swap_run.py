"""Other LoRA strengths on a running host: one loaded transformer, and the clip of a fresh load."""

import sys
from pathlib import Path

import pytest
import torch
from shipped import small
from tiny_checkpoint import FILES

from aiprod_engine.media.tensor_files import load_clip

pytestmark = pytest.mark.host
WORKFLOW, VERSION = "text_to_video_hq", "2.3"  # a LoRA in both stages, of two strengths
STAGES = ("5", "6")


@pytest.fixture
def checkpoint(models):
    """`checkpoint(name)`: the tiny checkpoint under a name that no other test loads."""
    folder = models / "checkpoints"

    def copy(name: str) -> str:
        (folder / name).write_bytes((folder / FILES[VERSION]["dev"]).read_bytes())
        return name

    return copy


def prompt(file: str, strengths: tuple[float, float]) -> dict:
    """Both stages; what the second one samples is saved, nothing is decoded."""
    nodes = small(WORKFLOW, VERSION)
    nodes["1"]["inputs"]["checkpoint"] = file
    for key, strength in zip(STAGES, strengths, strict=True):
        assert nodes[key]["class_type"] == "AIPRODLoRA"
        nodes[key]["inputs"]["strength"] = strength
    kept = {k: n for k, n in nodes.items() if not n["class_type"].startswith(("Save", "AIPRODDec"))}
    save = {"latent": ["13", 0], "filename_prefix": "latents/swap"}
    return kept | {"90": {"class_type": "AIPRODSaveLatent", "inputs": save}}


def sampled(client, host, file, strengths):
    (saved,) = client.run(prompt(file, strengths)).outputs["90"]["files"]
    return load_clip(host.base / "output" / saved["subfolder"] / saved["filename"])


def loads(host, file: str) -> int:
    return host.log_text().count(f"loaded the transformer of {file}")


def anonymous(host) -> int:
    lines = Path(f"/proc/{host.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def test_strengths_change_on_one_network(client, running_host, checkpoint):
    file, fresh = checkpoint("swapped.safetensors"), checkpoint("fresh.safetensors")
    clips = {s: sampled(client, running_host, file, s) for s in ((0.25, 0.25), (0.4, -0.1))}
    again = sampled(client, running_host, file, (0.25, 0.3))  # stage 1 is still cached
    assert loads(running_host, file) == 1
    expected = sampled(client, running_host, fresh, (0.4, -0.1))
    assert loads(running_host, fresh) == 1
    for stream in ("video", "audio"):
        found = getattr(clips[0.4, -0.1], stream)
        assert torch.equal(found, getattr(expected, stream))
        assert not torch.equal(found, getattr(clips[0.25, 0.25], stream))
        assert not torch.equal(getattr(again, stream), getattr(clips[0.25, 0.25], stream))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident set of Linux")
def test_ever_new_strengths_keep_the_memory_that_the_host_had(client, running_host, checkpoint):
    file, sizes = checkpoint("many.safetensors"), []
    for step in range(9):
        sampled(client, running_host, file, (0.1 * step + 0.05, 0.1))
        sizes.append(anonymous(running_host))
    assert loads(running_host, file) == 1
    assert max(sizes[6:]) <= max(sizes[3:6]) * 1.03, [size >> 20 for size in sizes]
    assert "memory leak" not in running_host.log_text()
