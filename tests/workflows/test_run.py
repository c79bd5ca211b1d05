"""Every shipped workflow runs over HTTP on a real host with tiny weights and leaves a movie."""

import json

import pytest
from mp4_check import problems, read_movie

from workflows import FOLDER

pytestmark = pytest.mark.host

CHECKPOINT = {"2.0": "ltx-2-19b-dev.safetensors", "2.3": "ltx-2.3-22b-dev.safetensors"}
WIDTH, HEIGHT, FRAMES = 128, 64, 17


def small(name: str, version: str) -> dict:
    """The shipped API prompt at a size for tests, on the checkpoint of one release."""
    prompt = json.loads((FOLDER / "api" / f"{name}.json").read_text())
    for node in prompt.values():
        if node["class_type"] == "AIPRODEmptyLatent":
            node["inputs"] |= {"width": WIDTH, "height": HEIGHT, "frames": FRAMES}
        if node["class_type"] == "AIPRODSchedule":
            node["inputs"]["steps"] = 3
        if node["class_type"] == "AIPRODCheckpointLoader":
            node["inputs"]["checkpoint"] = CHECKPOINT[version]
    return prompt


def movie_of(outcome, base):
    """The saved movie of a finished prompt."""
    (saved,) = [o["images"][0] for o in outcome.outputs.values() if "images" in o]
    return read_movie(base / "output" / saved["subfolder"] / saved["filename"])


@pytest.mark.parametrize("version", CHECKPOINT)
def test_text_to_video(version, client, running_host):
    messages = []
    outcome = client.run(small("text_to_video", version), messages.append)
    movie = movie_of(outcome, running_host.base)
    assert problems(movie, FRAMES, WIDTH, HEIGHT, 24.0) == []
    assert movie.peak > 0, "the sound track is digital silence"
    assert any(m["type"] == "progress" for m in messages)


def test_second_run_is_cached_and_another_seed_is_not(client, running_host):
    prompt = small("text_to_video", "2.3")
    client.run(prompt)
    again = client.run(prompt)
    cached = [m["data"]["nodes"] for m in again.messages if m["type"] == "execution_cached"]
    assert set(cached[0]) == set(prompt)
    (sampler,) = [k for k, n in prompt.items() if n["class_type"] == "AIPRODSampler"]
    prompt[sampler]["inputs"]["seed"] += 1
    other = client.run(prompt)
    executed = {m["data"]["node"] for m in other.messages if m["type"] == "executing"}
    assert sampler in executed
    movie_of(other, running_host.base)


def test_models_are_freed_on_request_and_load_again(client, running_host):
    prompt = small("text_to_video", "2.3")
    client.run(prompt)
    client.post("/free", {"unload_models": True, "free_memory": True})
    (sampler,) = [k for k, n in prompt.items() if n["class_type"] == "AIPRODSampler"]
    prompt[sampler]["inputs"]["seed"] += 7
    movie_of(client.run(prompt), running_host.base)
    assert "memory leak" not in running_host.log_text()
