"""`python -m aiprod_engine generate`: from tiny files in published formats to files that play."""

import argparse
import wave
from dataclasses import replace

import pytest
import torch
from goldens import ROOT as GOLDEN
from mp4_check import problems, read_movie
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_checkpoint import write_checkpoint, write_lora, write_upsampler
from tiny_gemma import write_gemma

from aiprod_engine.cli import main
from aiprod_engine.generate import calls, command, table
from aiprod_engine.generate.request import Request
from aiprod_engine.media.mp4 import Sound, write_mp4
from aiprod_engine.media.tensor_files import load_clip
from aiprod_engine.sampling import schedules
from aiprod_engine.sampling.presets import hq_preset

OTHER_LORA = str(GOLDEN / "checkpoints" / "ltx2_20_tiny_lora_distilled_bf16.safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Tiny files of 2.0 and 2.3 in the published formats."""
    folder = tmp_path_factory.mktemp("files")
    for version in ("2.0", "2.3"):
        write_checkpoint(folder / f"{version}.safetensors", version)
    write_upsampler(folder / "up.safetensors", "2.3")
    write_lora(folder / "distilled.safetensors", "2.3", {})
    write_lora(folder / "control.safetensors", "2.3", {"reference_downscale_factor": "2"})
    _, gemma = write_gemma(folder, 0)
    gemma.rename(folder / "gemma.safetensors")
    frames = torch.randint(0, 255, (17, 64, 64, 3), dtype=torch.uint8)
    write_mp4(folder / "clip.mp4", [frames], 24.0, Sound(torch.rand(2, 34000) - 0.5, 48000))
    Image.new("RGB", (100, 80), (200, 120, 40)).save(folder / "still.png")
    return folder


def arguments(files, output, more, version="2.3"):
    """A command line; words that name a file of the folder are completed."""
    more = [str(files / word) if (files / word).is_file() else word for word in more]
    return [
        "generate", "--prompt", "A fox runs over fresh snow.",
        "--checkpoint", str(files / f"{version}.safetensors"),
        "--text-encoder", str(files / "gemma.safetensors"),
        "--output", str(output), "--device", "cpu", *more,
    ]  # fmt: skip


SMALL = ("--width", "96", "--height", "64", "--frames", "9")
DOUBLE = ("--width", "128", "--height", "128", "--frames", "9")
SECOND = ("--upsampler", "up.safetensors")
GUIDED = ("--steps", "2", "--stg-blocks", "1", "--distilled-lora", "distilled.safetensors")
REFERENCE = ("--lora", "control.safetensors", "--reference-video", "clip.mp4")


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_one_stage_writes_a_clip_with_sound(version, files, tmp_path):
    output = tmp_path / "clip.mp4"
    more = (*SMALL, "--steps", "2", "--video-cfg", "2", "--fps", "25")
    assert main(arguments(files, output, more, version)) == 0
    assert problems(read_movie(output), 9, 96, 64, 25.0) == []


@pytest.mark.parametrize(
    ("pipeline", "more"),
    [
        ("keyframes", (*GUIDED, "--image", "still.png", "--image", "still.png", "-1", "0.5")),
        ("audio_to_video", (*GUIDED, "--audio", "clip.mp4", "--audio-start", "0.1")),
        ("ic_lora", (*REFERENCE, "--attention", "0.5", "--attention-mask", "clip.mp4")),
        ("dub", (*REFERENCE, "--audio", "clip.mp4")),
    ],
)
def test_two_stages_write_a_clip_of_the_full_size(pipeline, more, files, tmp_path):
    output = tmp_path / "clip.mp4"
    words = ("--pipeline", pipeline, *DOUBLE, *SECOND, *more)
    assert main(arguments(files, output, words)) == 0
    frames = 17 if pipeline == "dub" else 9  # as long as its reference
    assert problems(read_movie(output), frames, 128, 128, 24.0) == []


def test_a_distilled_clip_from_a_picture_goes_on(files, tmp_path):
    output, latent = tmp_path / "clip.mp4", tmp_path / "clip.safetensors"
    image = ("--image", "still.png", "0", "0.8", "--save-latent", str(latent))
    words = ("--pipeline", "distilled", *DOUBLE, *SECOND, *image)
    assert main(arguments(files, output, words)) == 0
    assert problems(read_movie(output), 9, 128, 128, 24.0) == []
    assert load_clip(latent).version == "2.3"

    again = ("--pipeline", "extend", "--source", str(latent), "--frames", "8", "--overlap", "1")
    assert main(arguments(files, output, (*again, "--is-distilled"))) == 0
    assert problems(read_movie(output), 17, 128, 128, 24.0) == []


def test_retake_of_a_file(files, tmp_path):
    output = tmp_path / "retaken.mp4"
    words = ("--pipeline", "retake", "--source", "clip.mp4", "--window", "0.2", "0.4")
    assert main(arguments(files, output, (*words, "--is-distilled"))) == 0
    assert problems(read_movie(output), 17, 64, 64, 24.0) == []


def test_sound_alone_becomes_a_wav(files, tmp_path):
    output = tmp_path / "sound.wav"
    more = ("--pipeline", "text_to_audio", "--frames", "25", "--steps", "2")
    assert main(arguments(files, output, more)) == 0
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
        (("--pipeline", "distilled", *SECOND, "--steps", "4"), "leave out --steps"),
        (("--pipeline", "ic_lora", "--skip-stage-2"), "needs --lora, --reference-video"),
        (("--sampler", "dpm"), "sampler must be one of euler"),
        (("--lora", OTHER_LORA), "LoRA targets"),
        (("--lora", OTHER_LORA, "much"), "strength of a LoRA must be a number"),
        (("--lora", OTHER_LORA, "voice=1"), "is a number, or video=V,audio=A; got 'voice=1'"),
        (("--attention", "2"), "attention strength must lie in [0, 1]"),
        (("--image", "still.png", "900"), "frame index must lie in 0 .. 8"),
        (("--output", "nowhere/clip.mp4"), "folder must exist"),
    ],
)
def test_bad_requests_fail_in_one_sentence_before_loading(more, sentence, files, tmp_path, capsys):
    assert main(arguments(files, tmp_path / "clip.mp4", (*SMALL, *more))) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_the_wrong_text_encoder_is_refused(files, tmp_path, capsys):
    words = arguments(files, tmp_path / "clip.mp4", SMALL)
    words[words.index("--text-encoder") + 1] = str(files / "2.3.safetensors")
    assert main(words) == 2
    assert "no file holds the text_encoder" in capsys.readouterr().err


def test_weights_that_nothing_can_have_trained_are_refused(files, tmp_path, capsys):
    with safe_open(files / "2.3.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    key = next(k for k in tensors if k.startswith("text_embedding_projection."))
    tensors[key] = torch.full_like(tensors[key], torch.nan)
    save_file(tensors, tmp_path / "damaged.safetensors", metadata)
    words = arguments(files, tmp_path / "clip.mp4", SMALL)
    words[words.index("--checkpoint") + 1] = str(tmp_path / "damaged.safetensors")
    assert main(words) == 2
    assert "damaged.safetensors: 'text_embedding_projection" in capsys.readouterr().err
    assert request_of(words).networks.check_values
    assert not request_of([*words, "--no-check-values"]).networks.check_values


def test_every_listed_pipeline_can_be_called():
    assert set(calls.CALLS) == set(table.PIPELINES)


def test_options_become_settings(files, tmp_path):
    words = ("--pipeline", "two_stage_hq", "--audio-cfg", "5", "--stg-blocks", "--skip-step", "1")
    more = (*words, "--schedule", "beta", "--steps", "6", "--lora", "control.safetensors", "0.5")
    request = request_of(arguments(files, tmp_path / "clip.mp4", more))
    settings = request.settings
    assert settings.loras == ((str(files / "control.safetensors"), 0.5),)
    per_stream = ("--lora", "control.safetensors", "video=0.8,audio=-0.5")
    for given, audio in ((per_stream, -0.5), ((*per_stream[:2], "video=0.8"), 1.0)):
        other = request_of(arguments(files, tmp_path / "x.mp4", (*SMALL, *given))).settings
        assert other.loras[0][1] == {"video": 0.8, "audio": audio}
    assert torch.equal(settings.sigmas, schedules.beta(6))
    hq = hq_preset("2.3")
    assert settings.guidance.video == replace(hq.video, stg_blocks=(), skip_step=1)
    assert settings.guidance.audio == replace(hq.audio, cfg=5.0, stg_blocks=(), skip_step=1)


def request_of(words):
    parser = argparse.ArgumentParser()
    command.add_generate(parser.add_subparsers())
    return Request.of(parser.parse_args(words))


def test_help_names_the_pipelines(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in command.PIPELINES)
