"""Every shipped workflow runs over HTTP on a real host with tiny weights, for 2.0 and 2.3."""

import av
import pytest
from graphs import GRAPHS
from mp4_check import problems, read_movie
from shipped import ADDED, FPS, FRAMES, HEIGHT, WIDTH, saved, small
from tiny_checkpoint import FILES
from tiny_media import write_media

pytestmark = pytest.mark.host

NAMES = [graph.name for graph in GRAPHS]
TWICE = ("text_to_video_distilled", "text_to_video_hq", "image_to_video")


@pytest.fixture(scope="module", autouse=True)
def _media(models):
    write_media(models.parent / "input", WIDTH, HEIGHT, FRAMES, FPS)


@pytest.mark.parametrize("version", FILES)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "text_to_audio"])
def test_workflow_leaves_a_movie(name, version, client, running_host):
    messages = []
    outcome = client.run(small(name, version), messages.append)
    movie = read_movie(saved(outcome, running_host.base))
    scale = 2 if name in TWICE else 1
    frames = FRAMES + ADDED if name == "extend" else FRAMES
    assert problems(movie, frames, WIDTH * scale, HEIGHT * scale, FPS) == []
    assert movie.loudness > 0, "the sound track is digital silence"
    assert any(m["type"] == "progress" for m in messages)


@pytest.mark.parametrize("version", FILES)
def test_text_to_audio_leaves_a_sound(version, client, running_host):
    outcome = client.run(small("text_to_audio", version))
    with av.open(str(saved(outcome, running_host.base, "audio"))) as file:
        samples = sum(frame.samples for frame in file.decode(audio=0))
        rate = file.streams.audio[0].rate
    assert abs(samples / rate - FRAMES / FPS) < 0.04


def test_audio_to_video_keeps_the_users_own_sound(client, running_host):
    outcome = client.run(small("audio_to_video", "2.3"))
    movie = read_movie(saved(outcome, running_host.base))
    assert movie.sample_rate == 44_100
    assert movie.loudness == pytest.approx(0.305, abs=0.02)  # of 0.5 sin and 0.35 sin


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
    assert saved(other, running_host.base).is_file()


def test_models_are_freed_on_request_and_load_again(client, running_host):
    prompt = small("text_to_video", "2.3")
    client.run(prompt)
    client.post("/free", {"unload_models": True, "free_memory": True})
    (sampler,) = [k for k, n in prompt.items() if n["class_type"] == "AIPRODSampler"]
    prompt[sampler]["inputs"]["seed"] += 7
    assert saved(client.run(prompt), running_host.base).is_file()
    assert "memory leak" not in running_host.log_text()
