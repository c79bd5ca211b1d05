"""Live preview, time left and cancel over HTTP on a real host, and the rules behind them."""

import io
import struct
import time
from importlib import import_module

import pytest
import torch
from host_client import HostClient, PromptInterrupted
from loaded_pack import on_device
from PIL import Image
from shipped import small, with_host_sampler
from tiny_checkpoint import FILES

pytestmark = pytest.mark.host

PICTURE, TEXT = 1, 3  # binary messages of the host


def node_of(prompt, class_type):
    (key,) = [k for k, n in prompt.items() if n["class_type"] == class_type]
    return key


def prompt_with(steps, seed, vae_version=None, version="2.3"):
    """The shipped prompt whose sampler has the video VAE of a release wired, or none."""
    prompt = small("text_to_video", version)
    prompt[node_of(prompt, "AIPRODSchedule")]["inputs"]["steps"] = steps
    inputs = prompt[node_of(prompt, "AIPRODSampler")]["inputs"]
    inputs["seed"] = seed
    inputs.pop("video_vae", None)
    if vae_version is not None:
        prompt["vae"] = {
            "class_type": "AIPRODCheckpointLoader",
            "inputs": {"checkpoint": FILES[vae_version]["dev"]},
        }
        inputs["video_vae"] = ["vae", 2]
    return prompt


def binary(messages, kind):
    """Payloads of the binary messages of one kind."""
    found = [m["data"] for m in messages if m["type"] == "preview"]
    return [data[4:] for data in found if struct.unpack(">I", data[:4])[0] == kind]


@pytest.mark.parametrize("version", FILES)
def test_pictures_arrive_while_sampling(version, previewing):
    client = HostClient(previewing.url)
    outcome = client.run(prompt_with(4, 1, vae_version=version, version=version))
    pictures = binary(outcome.messages, PICTURE)
    assert pictures
    assert len(pictures) <= 2  # at most every second step
    image = Image.open(io.BytesIO(pictures[0][4:]))
    assert image.format == "JPEG"
    assert image.size == (512, 256)  # latent frames of 4 x 2 cells, two by two
    assert len(set(image.convert("L").getdata())) > 10
    assert "live preview" not in previewing.log_text()


def test_the_hosts_own_preview_takes_joint_latents(previewing):
    """It dies of the packed latents that the host's samplers carry."""
    client = HostClient(previewing.url)
    for vae, seed in (("2.3", 11), (None, 12)):
        outcome = client.run(with_host_sampler(prompt_with(3, seed, vae_version=vae), steps=seed))
        assert bool(binary(outcome.messages, PICTURE)) == (vae is not None)
    assert "Traceback" not in previewing.log_text()


def test_a_vae_of_another_release_costs_the_picture_not_the_run(previewing):
    client = HostClient(previewing.url)
    outcome = client.run(prompt_with(3, 2, vae_version="2.0", version="2.3"))
    assert not binary(outcome.messages, PICTURE)
    assert "no live preview" in previewing.log_text()


def test_previews_switched_off_or_no_vae_show_nothing(client, previewing):
    outcome = client.run(prompt_with(3, 3, vae_version="2.3"))
    assert not binary(outcome.messages, PICTURE)
    outcome = HostClient(previewing.url).run(prompt_with(3, 3))
    assert not binary(outcome.messages, PICTURE)


def test_time_left_is_written_below_the_node(client):
    prompt = prompt_with(5, 5)
    lines = binary(client.run(prompt).messages, TEXT)
    sampler = node_of(prompt, "AIPRODSampler").encode()
    texts = [line[4 + len(sampler) :].decode() for line in lines if line[4:].startswith(sampler)]
    assert [text.partition(",")[0] for text in texts] == [f"step {k} of 5" for k in range(1, 6)]
    assert texts[0].endswith(" s left")
    assert texts[-1] == "step 5 of 5"


def test_cancel_ends_the_run_at_once_and_the_next_one_works(client, running_host):
    steps = 1000  # more than the test would wait for
    prompt = prompt_with(steps, 6)
    prompt[node_of(prompt, "AIPRODEmptyLatent")]["inputs"]["frames"] = 121
    seen = {"value": 0, "interrupted": None}

    def interrupt_after_the_second_step(message):
        data = message.get("data", {})
        if message["type"] == "progress" and data["max"] == steps:
            seen["value"] = data["value"]
            if data["value"] == 2:
                client.post("/interrupt", {})
                seen["interrupted"] = time.monotonic()

    with pytest.raises(PromptInterrupted):
        client.run(prompt, interrupt_after_the_second_step)
    waited = time.monotonic() - seen["interrupted"]
    assert waited < 10, "cancel must not wait for the run"
    assert seen["value"] < 20
    outcome = client.run(prompt_with(3, 7))
    assert any("images" in output for output in outcome.outputs.values())
    assert "Traceback" not in running_host.log_text().rpartition("Processing interrupted")[2]


# the same host code inside the test process


@pytest.fixture
def rooms(pack, node_types):
    """Modules of the pack under the name that the host gave it."""
    return {
        name: import_module(f"custom_nodes_x_aiprod.{path}")
        for name, path in {
            "host": "nodes._host", "preview": "nodes._preview", "progress": "nodes._progress",
            "sockets": "nodes._sockets", "types": "aiprod_engine.types",
        }.items()
    }  # fmt: skip


@pytest.fixture
def previews_on(rooms, monkeypatch):
    from comfy.cli_args import LatentPreviewMethod

    monkeypatch.setattr(rooms["host"].args, "preview_method", LatentPreviewMethod.Latent2RGB)


@pytest.fixture
def parts(node_types):
    """Payloads of the tiny 2.3 checkpoint: model, text parts, video VAE, audio VAE."""
    return node_types["AIPRODCheckpointLoader"].execute(checkpoint=FILES["2.3"]["dev"]).result


@pytest.fixture
def sample(rooms, node_types, parts):
    """Run the Sampler node on random prompts."""

    def run(steps=2, **more):
        context = rooms["types"].TextContext(torch.randn(1, 8, 64), torch.randn(1, 8, 32), "2.3")
        guider = rooms["sockets"].GuiderPayload(context)
        latent = rooms["types"].AVLatent(None, None, 17, 64, 96, 24.0)
        sigmas = torch.linspace(1, 0, steps + 1)
        return node_types["AIPRODSampler"].execute(
            model=parts[0], guider=guider, sigmas=sigmas, latent=latent, sampler="euler", seed=1,
            **more,
        )  # fmt: skip

    return run


def test_the_map_is_fitted_once_per_file(rooms, parts, previews_on, sample, monkeypatch):
    calls, fit = [], rooms["preview"].fit_latent_to_rgb
    monkeypatch.setattr(
        rooms["preview"], "fit_latent_to_rgb", lambda *given: calls.append(1) or fit(*given)
    )
    rooms["preview"]._maps.clear()
    sample(video_vae=parts[2])
    sample(video_vae=parts[2])
    assert len(calls) == 1
    sample(guides=rooms["sockets"].GuidesPayload((), parts[2]))  # the guides' VAE will do
    assert len(rooms["preview"]._maps) == 1


def test_a_preview_changes_no_result(parts, previews_on, sample):
    torch.manual_seed(1)  # of the prompts
    (plain,) = sample().result
    torch.manual_seed(1)
    (watched,) = sample(video_vae=parts[2]).result
    assert torch.equal(plain.video, watched.video)
    assert torch.equal(plain.audio, watched.audio)


def test_pictures_reach_the_progress_bar(rooms, parts, previews_on, sample, monkeypatch):
    sent = []

    class Bar:
        def __init__(self, total):
            self.total = total

        def update_absolute(self, value, total, preview=None):
            sent.append((value, total, preview))

    monkeypatch.setattr(rooms["host"].comfy.utils, "ProgressBar", Bar)
    sample(steps=3, guides=rooms["sockets"].GuidesPayload((), parts[2]))
    assert [(value, total) for value, total, _ in sent] == [(1, 3), (2, 3), (3, 3)]
    kind, image, side = sent[0][2]
    assert (kind, image.mode, side) == ("JPEG", "RGB", 512)
    assert sent[1][2] is None


def test_a_fit_that_fails_is_logged_and_the_run_goes_on(
    rooms, parts, previews_on, sample, monkeypatch, caplog
):
    def broken(*given):
        raise RuntimeError("no such kernel")

    rooms["preview"]._maps.clear()
    monkeypatch.setattr(rooms["preview"], "fit_latent_to_rgb", broken)
    assert sample(video_vae=parts[2]).result[0].video is not None
    assert "no live preview: no such kernel" in caplog.text


@pytest.mark.parametrize("times", [1, 10])
def test_a_fit_that_runs_out_of_memory_goes_on_with_less_or_without(
    times, rooms, parts, previews_on, sample, monkeypatch, caplog
):
    fit, seen = rooms["preview"].fit_latent_to_rgb, []

    def failing(*given):
        seen.append(1)
        if len(seen) <= times:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return fit(*given)

    rooms["preview"]._maps.clear()
    monkeypatch.setattr(rooms["preview"], "fit_latent_to_rgb", failing)
    caplog.set_level("INFO")
    assert sample(video_vae=parts[2]).result[0].video is not None
    assert "fit preview: needs " in caplog.text
    assert "fit preview ran out of memory; going on with" in caplog.text
    sentence = "no live preview: fit preview must fit into memory"
    assert (sentence in caplog.text) == (times == 10)
    assert "disconnect video_vae" in caplog.text or times == 1
    assert len(rooms["preview"]._maps) == (times == 1)


def test_cancel_during_the_fit_is_a_cancel(rooms, parts, previews_on, sample):
    rooms["preview"]._maps.clear()
    rooms["host"].mm.interrupt_current_processing(True)
    with pytest.raises(rooms["host"].Cancelled):
        sample(video_vae=parts[2])
    sample(video_vae=parts[2])


def test_cancel_stops_before_the_next_block(rooms, parts, sample):
    visited = []
    with on_device(rooms["host"], parts[0].transformer) as (transformer,):
        blocks = list(transformer.transformer_blocks)

    def cancel_in_the_second(index):
        def hook(*_):
            visited.append(index)
            if len(visited) == len(blocks) + 2:  # in the second block of the second step
                rooms["host"].mm.interrupt_current_processing(True)

        return hook

    hooks = [b.register_forward_hook(cancel_in_the_second(i)) for i, b in enumerate(blocks)]
    try:
        with pytest.raises(rooms["host"].Cancelled):
            sample(steps=5)
    finally:
        for hook in hooks:
            hook.remove()
    assert visited == [*range(len(blocks)), 0, 1]
    assert sample().result[0].video is not None


def test_time_left_in_words(rooms):
    progress = rooms["progress"]
    now = [0.0]
    left = progress.TimeLeft(4, lambda: now[0])
    assert left.text("step", 0) == "step 0 of 4"
    now[0] = 21.7
    assert left.text("step", 1) == "step 1 of 4, 1 min 05 s left"
    assert left.is_log_due()
    assert not left.is_log_due()
    assert left.text("step", 4) == "step 4 of 4"
    assert progress.duration(59.4) == "59 s"
    assert progress.duration(59.6) == "1 min 00 s"
    assert progress.duration(7391) == "2 h 03 min"
