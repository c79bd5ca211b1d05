"""Memory ends in each phase of `generate`: the run completes with less, or names what to change.

A CPU with a budget plays the device.
"""

from dataclasses import replace

import pytest
import torch
from goldens import ROOT
from tiny_checkpoint import write_checkpoint, write_upsampler
from tiny_gemma import write_gemma

from aiprod_engine.cli import main
from aiprod_engine.errors import OutOfMemory
from aiprod_engine.generate import output
from aiprod_engine.media.mp4 import Sound
from aiprod_engine.media.tensor_files import load_clip
from aiprod_engine.models.transformer import Transformer
from aiprod_engine.models.video_vae.blocks import Conv
from aiprod_engine.pipelines import encoders, enhance, prompts, run
from aiprod_engine.pipelines.guides import Pixels
from aiprod_engine.pipelines.networks import Networks
from aiprod_engine.types import AVLatent

# phase -> what computes in it, and what a user can change
PHASES = {
    "encode prompt": (prompts, "hidden_states", "shorten the text"),
    "connect prompt": (prompts, "contexts", "shorten the text"),
    "sample": (Transformer, "forward", "lower width, height or frames"),
    "upsample": (run, "upsample", "lower width, height or frames"),
    "decode video": (Conv, "window", "lower width or height"),
    "decode audio": (output, "decode_track", "lower frames"),
}
LAST = ("decode video", "decode audio")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_checkpoint(folder / "2.3.safetensors", "2.3")
    write_upsampler(folder / "up.safetensors", "2.3")
    _, gemma = write_gemma(folder, 0)
    gemma.rename(folder / "gemma.safetensors")
    return folder


def run_command(files, folder, *more, vram="4"):
    """Exit code and sampled clip, None if there is none."""
    clip = folder / "clip.latent.safetensors"
    code = main([
        "generate", "--pipeline", "distilled", "--prompt", "A fox.", "--device", "cpu",
        "--checkpoint", str(files / "2.3.safetensors"), "--vram", vram,
        "--text-encoder", str(files / "gemma.safetensors"),
        "--upsampler", str(files / "up.safetensors"),
        "--width", "128", "--height", "128", "--frames", "9",
        "--output", str(folder / "clip.mp4"), *more,
    ])  # fmt: skip
    return code, load_clip(clip) if clip.exists() else None


@pytest.fixture
def generate(files, tmp_path):
    def generate(*more, **options):
        return run_command(files, tmp_path, *more, **options)

    return generate


@pytest.fixture(scope="module")
def expected(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    torch.set_num_threads(1)
    code, clip = run_command(
        files, folder, "--save-latent", str(folder / "clip.latent.safetensors")
    )
    assert code == 0
    return clip


def fail(monkeypatch, phase, calls, phases=PHASES):
    """Let the given calls of what computes in `phase` run out of memory."""
    place, name, remedy = phases[phase]
    function, seen = getattr(place, name), []

    def failing(*args, **options):
        seen.append(1)
        if len(seen) in calls:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return function(*args, **options)

    monkeypatch.setattr(place, name, failing)
    return remedy


@pytest.mark.parametrize("phase", PHASES)
def test_the_run_completes_with_less(phase, generate, expected, monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    fail(monkeypatch, phase, calls={1})
    code, clip = generate("--save-latent", str(tmp_path / "clip.latent.safetensors"))
    assert code == 0
    assert torch.equal(clip.video, expected.video)
    assert torch.equal(clip.audio, expected.audio)
    assert f"{phase} ran out of memory; going on with" in caplog.text


@pytest.mark.parametrize(("call", "stage"), [(3, 1), (10, 2)])  # of 8 and 3 steps
def test_memory_may_end_in_any_step_of_any_stage(
    call, stage, generate, expected, monkeypatch, tmp_path, caplog
):
    caplog.set_level("INFO")
    fail(monkeypatch, "sample", calls={call})
    code, clip = generate("--save-latent", str(tmp_path / "clip.latent.safetensors"))
    assert code == 0
    assert torch.equal(clip.video, expected.video)
    messages = [line for line in caplog.messages if line.startswith("sample")]
    fell_back = [" ran out of memory; " in line for line in messages]
    assert fell_back == ([False, True, False] if stage == 1 else [False, False, True])


@pytest.mark.parametrize("phase", PHASES)
def test_the_run_stops_with_one_sentence_and_keeps_what_was_sampled(
    phase, generate, monkeypatch, capsys, caplog
):
    remedy = fail(monkeypatch, phase, calls=range(1, 10_000))
    code, clip = generate()
    assert code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"{phase} must fit into memory: it needs ")
    assert error.endswith(f"is free; {remedy}")
    assert (clip is not None) == (phase in LAST)
    if clip is not None:
        assert "what was sampled is in" in caplog.text


# Phases that not every run has --------------------------------------------------------------------

CLIP = AVLatent(None, None, 17, 64, 96, 24.0, "2.3")
SEEING = ROOT / "text/files/hf_folder"
PICTURE = torch.arange(64 * 96 * 3).reshape(64, 96, 3).byte()
OTHERS = {
    "encode guides": (encoders, "encode_video", "lower width or height"),
    "encode sound": (encoders, "encode_sound", "lower frames, or give a shorter sound"),
    "look at the picture": (enhance, "look_at", "give no picture"),
    "write prompt": (enhance, "write", "lower max_tokens or leave out Enhance Prompt"),
}


def work(files, phase):
    """What the phase makes: a latent or a text."""
    networks = Networks.of(files / "2.3.safetensors", SEEING, dtype=torch.float32)
    networks = replace(networks, budget=1 << 30)
    if phase in ("look at the picture", "write prompt"):
        return enhance.enhance(networks, "A fox.", PICTURE, enhance.Writing(max_tokens=8))
    encode = encoders.encoders(networks, CLIP)
    if phase == "encode sound":
        return encode.audio(Sound(torch.linspace(-1, 1, 16000).expand(2, -1), 16000))
    return encode.video(Pixels(PICTURE.expand(9, -1, -1, -1), CLIP))


@pytest.mark.parametrize("phase", OTHERS)
def test_other_phases_complete_with_less_too(phase, files, monkeypatch, caplog):
    caplog.set_level("INFO")
    expected = work(files, phase)
    assert f"{phase}: needs " in caplog.text
    fail(monkeypatch, phase, {1}, OTHERS)
    found = work(files, phase)
    assert found == expected if isinstance(found, str) else torch.equal(found, expected)
    assert f"{phase} ran out of memory; going on with" in caplog.text


@pytest.mark.parametrize("phase", OTHERS)
def test_other_phases_stop_with_one_sentence_too(phase, files, monkeypatch):
    remedy = fail(monkeypatch, phase, range(1, 10_000), OTHERS)
    with pytest.raises(OutOfMemory, match=f"^{phase} must fit into memory: it needs .*; {remedy}$"):
        work(files, phase)


def test_frames_of_a_guide_are_gone_through_again(files, monkeypatch):
    """Memory that ends in the middle of a clip costs what was encoded, not the result."""
    expected = work(files, "encode guides")
    window, seen = Conv.window, []

    def failing(*args):
        seen.append(1)
        if len(seen) == 40:
            raise torch.cuda.OutOfMemoryError
        return window(*args)

    monkeypatch.setattr(Conv, "window", failing)
    assert torch.equal(work(files, "encode guides"), expected)
    assert len(seen) > 40


@pytest.mark.parametrize(("residency", "vram"), [("stream", "4"), ("resident", "4"),
                                                 ("auto", "0.002")])  # fmt: skip
def test_residency_changes_no_bit(residency, vram, generate, expected, tmp_path, caplog):
    caplog.set_level("INFO")
    latent = ("--save-latent", str(tmp_path / "clip.latent.safetensors"))
    code, clip = generate("--residency", residency, *latent, vram=vram)
    assert code == 0
    assert torch.equal(clip.video, expected.video)
    lines = [line for line in caplog.messages if line.startswith("sample: needs")]
    assert len(lines) == 2
    assert all(("stream" in line) == (residency != "resident") for line in lines), lines


def test_a_budget_is_positive(generate, capsys):
    assert generate(vram="0") == (2, None)
    assert "--vram must be above 0 GiB" in capsys.readouterr().err
