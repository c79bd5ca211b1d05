"""`python -m aiprod_engine generate` from tiny files in the published formats to files that play."""

import subprocess
import sys
import wave
from pathlib import Path

import pytest
import torch
from mp4_check import problems, read_movie
from tiny_checkpoint import CHECKPOINTS, LATENT_CHANNELS, write_models

from aiprod_engine.cli import main
from aiprod_engine.generate import command, table
from aiprod_engine.media.mp4 import Sound, write_mp4
from aiprod_engine.media.tensor_files import load_clip

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def files(tmp_path_factory, write_upsampler):
    folder = tmp_path_factory.mktemp("models")
    for name in ("checkpoints", "text_encoders"):
        (folder / name).mkdir()
    write_models(folder, "2.0", "2.3")
    write_upsampler(folder / "up.safetensors", LATENT_CHANNELS)
    return folder


def arguments(files, output, *more, version="2.3"):
    return [
        "generate", "--prompt", "A fox runs over fresh snow.",
        "--checkpoint", str(files / "checkpoints" / CHECKPOINTS[version]),
        "--text-encoder", str(files / "text_encoders" / "gemma_3_12B_it.safetensors"),
        "--output", str(output), "--device", "cpu", *more,
    ]  # fmt: skip


SMALL = ("--width", "96", "--height", "64", "--frames", "9")


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_one_stage_writes_a_clip_with_sound(version, files, tmp_path):
    output = tmp_path / "clip.mp4"
    steps = ("--steps", "2", "--stg-blocks", "1", "--video-cfg", "2", "--fps", "25")
    assert main(arguments(files, output, *SMALL, *steps, version=version)) == 0
    assert problems(read_movie(output), 9, 96, 64, 25.0) == []


def test_two_stages_distilled_from_a_picture(files, tmp_path, picture):
    output, latent = tmp_path / "clip.mp4", tmp_path / "clip.safetensors"
    size = ("--width", "128", "--height", "128", "--frames", "9")
    more = ("--pipeline", "distilled", "--upsampler", str(files / "up.safetensors"))
    image = ("--image", str(picture), "0", "0.8", "--save-latent", str(latent))
    assert main(arguments(files, output, *size, *more, *image)) == 0
    assert problems(read_movie(output), 9, 128, 128, 24.0) == []
    clip = load_clip(latent)
    assert (clip.frames, clip.version) == (9, "2.3")

    longer = tmp_path / "longer.mp4"
    again = ("--pipeline", "extend", "--source", str(latent), "--frames", "8", "--overlap", "1")
    assert main(arguments(files, longer, *again, "--is-distilled")) == 0
    assert problems(read_movie(longer), 17, 128, 128, 24.0) == []


@pytest.fixture
def picture(tmp_path):
    from PIL import Image

    path = tmp_path / "still.png"
    Image.new("RGB", (100, 80), (200, 120, 40)).save(path)
    return path


def test_retake_of_a_file(files, tmp_path):
    source, output = tmp_path / "source.mp4", tmp_path / "retaken.mp4"
    frames = torch.randint(0, 255, (17, 64, 64, 3), dtype=torch.uint8)
    write_mp4(source, [frames], 24.0, Sound(torch.rand(2, 34000) - 0.5, 48000))
    window = ("--pipeline", "retake", "--source", str(source), "--window", "0.2", "0.4")
    assert main(arguments(files, output, *window, "--is-distilled")) == 0
    assert problems(read_movie(output), 17, 64, 64, 24.0) == []


def test_sound_alone_becomes_a_wav(files, tmp_path):
    output = tmp_path / "sound.wav"
    more = ("--pipeline", "text_to_audio", "--frames", "25", "--steps", "2")
    assert main(arguments(files, output, *more)) == 0
    with wave.open(str(output)) as sound:
        assert (sound.getnchannels(), sound.getframerate()) == (2, 48000)
        assert sound.getnframes() == 50000  # 25 frames at 24 fps


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--frames", "10"), "frames must be 8k + 1, got 10; nearest: 9 or 17"),
        (("--height", "70"), "height must be a multiple of 32"),
        (("--pipeline", "distilled"), "needs --upsampler"),
        (("--pipeline", "two_stage"), "needs --distilled-lora, --upsampler"),
        (("--pipeline", "distilled", "--upsampler", "UP", "--steps", "4"), "leave out --steps"),
        (("--sampler", "dpm"), "sampler must be one of euler"),
        (("--lora", "LORA"), "LoRA targets"),
        (("--lora", "LORA", "much"), "strength of a LoRA must be a number"),
        (("--attention", "2"), "attention strength must lie in [0, 1]"),
        (("--output", "nowhere/clip.mp4"), "folder must exist"),
    ],
)
def test_bad_requests_fail_in_one_sentence_before_loading(more, sentence, files, tmp_path, capsys):
    from goldens import ROOT as GOLDEN

    places = {
        "UP": str(files / "up.safetensors"),
        "LORA": str(GOLDEN / "checkpoints" / "ltx2_20_tiny_lora_distilled_bf16.safetensors"),
    }
    more = [places.get(word, word) for word in more]
    assert main(arguments(files, tmp_path / "clip.mp4", *SMALL, *more)) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_the_wrong_text_encoder_is_refused(files, tmp_path, capsys):
    words = arguments(files, tmp_path / "clip.mp4", *SMALL)
    words[words.index("--text-encoder") + 1] = str(files / "checkpoints" / CHECKPOINTS["2.0"])
    assert main(words) == 2
    assert "2.0" in capsys.readouterr().err


def test_every_listed_pipeline_can_be_called():
    assert set(command.PIPELINES) == set(table.PIPELINES)


def test_help_needs_neither_torch_nor_files():
    code = (
        "import sys, aiprod_engine.cli as cli\n"
        "try: cli.main(['generate', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'av' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert b"--pipeline" in done.stdout
