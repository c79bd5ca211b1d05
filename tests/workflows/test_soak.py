"""A host that runs prompt after prompt keeps the memory that it had."""

import logging
import sys
from pathlib import Path
from statistics import mean

import pytest
from shipped import small

pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the resident set of Linux"),
]

PROMPTS = 30
WORKFLOWS = (("text_to_video", "2.3"), ("text_to_audio", "2.0"))  # no file in common but Gemma
WITHIN = 0.03


def resident(pid: int) -> int:
    """Anonymous resident bytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def with_seed(prompt: dict, seed: int) -> dict:
    """The prompt as a new one: everything from the text on is computed again."""
    for node in prompt.values():
        if node["class_type"] == "AIPRODSampler":
            node["inputs"]["seed"] = seed
        if node["class_type"] == "AIPRODEncodePrompt":
            node["inputs"]["text"] = f"A fox, take {seed}."
    return prompt


def test_alternating_workflows_keep_the_resident_set_flat(client, running_host):
    sizes = []
    for seed in range(PROMPTS):
        name, version = WORKFLOWS[seed % len(WORKFLOWS)]
        client.run(with_seed(small(name, version), 1000 + seed))
        sizes.append(resident(running_host.process.pid))
    logging.getLogger(__name__).info("resident MiB: %s", [size >> 20 for size in sizes])
    third = PROMPTS // 3
    middle, last = mean(sizes[third : 2 * third]), mean(sizes[2 * third :])
    assert last <= middle * (1 + WITHIN), [size >> 20 for size in sizes]
    assert "memory leak" not in running_host.log_text()
