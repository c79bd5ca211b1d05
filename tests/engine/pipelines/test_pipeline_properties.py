"""What holds for every pipeline: seeds, sizes, early errors, networks that come and go."""

from dataclasses import replace

import pytest
import torch
from goldens import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from aiprod_engine import timing
from aiprod_engine.errors import CheckpointError, EngineError, MismatchError, SizeError
from aiprod_engine.media.mp4 import Sound
from aiprod_engine.pipelines.audio_to_video import audio_to_video
from aiprod_engine.pipelines.distilled import distilled
from aiprod_engine.pipelines.dub import dub
from aiprod_engine.pipelines.guides import ReferenceAudioGuide, ReferenceVideoGuide, RetakeGuide
from aiprod_engine.pipelines.ic_lora import ic_lora
from aiprod_engine.pipelines.networks import Networks, dispose
from aiprod_engine.pipelines.one_stage import one_stage
from aiprod_engine.pipelines.retake import retake
from aiprod_engine.pipelines.run import Run, Settings, guided, unguided
from aiprod_engine.pipelines.stage import run_stage
from aiprod_engine.pipelines.text_to_audio import text_to_audio
from aiprod_engine.pipelines.two_stage import two_stage
from aiprod_engine.sampling.presets import preset
from aiprod_engine.types import AVLatent, Streams
from aiprod_engine.weights import load

CHECKPOINTS = ROOT / "checkpoints"
KINDS = ("transformer", "video_encoder", "vocoder", "upsampler")
FAST = Settings(
    sigmas=torch.tensor([1.0, 0.5, 0.0]),
    refine_sigmas=torch.tensor([0.6, 0.0]),
    guidance=Streams(),
)


@pytest.fixture(scope="module")
def networks(tmp_path_factory, write_upsampler):
    upsampler = write_upsampler(tmp_path_factory.mktemp("up") / "up.safetensors", 8)
    checkpoint = CHECKPOINTS / "ltx2_23_tiny.safetensors"
    return Networks.of(checkpoint, upsampler=upsampler, dtype=torch.float32)


def test_the_same_seed_gives_the_same_clip(networks, contexts, small):
    clip = replace(small, height=128, width=128)
    one, same, other = (
        distilled(Run(networks, seed), clip, contexts, settings=FAST) for seed in (1, 1, 2)
    )
    assert torch.equal(one.video, same.video)
    assert torch.equal(one.audio, same.audio)
    assert not torch.allclose(one.video, other.video)
    assert (one.frames, one.height, one.width, one.fps) == (9, 128, 128, 24.0)
    assert one.version == "2.3"


@settings(max_examples=8, deadline=None)
@given(blocks=st.integers(0, 4), fps=st.floats(10, 61))
def test_picture_and_sound_agree_within_one_audio_latent(blocks, fps, tiny, contexts):
    frames = 8 * blocks + 1
    clip = AVLatent(None, None, frames, 32, 64, fps)
    done = one_stage(
        Run(tiny), clip, contexts, settings=replace(FAST, sigmas=torch.tensor([1.0, 0.0]))
    )
    assert timing.pixel_frames(done.video.shape[2]) == frames
    seconds = done.audio.shape[2] / timing.AUDIO_LATENTS_PER_SECOND
    assert abs(seconds - frames / fps) <= 1 / timing.AUDIO_LATENTS_PER_SECOND


def test_sound_alone_equals_the_full_build_without_a_picture(tiny, transformer, contexts):
    """The picture's half of the weights takes no part, to the bit."""
    told = {}
    run = Run(tiny, tell=told.__setitem__)
    alone = text_to_audio(run, 25, 24.0, contexts, Settings(steps=2))
    assert alone.video is None
    assert alone.audio.shape[2] == timing.audio_latents(25, 24.0)
    assert told["stage1.stage"].guidance.audio.modality == 1.0
    full = run_stage(transformer, told["stage1.start"], told["stage1.stage"], run.begin())
    assert torch.equal(full.audio, alone.audio)


@pytest.mark.parametrize(
    ("height", "frames", "message"),
    [(96, 9, "multiple of 64"), (128, 10, "8k \\+ 1")],
)
def test_sizes_are_checked_before_any_weight_is_read(height, frames, message, contexts):
    nowhere = Networks.of("nowhere.safetensors")
    clip = AVLatent(None, None, frames, height, 128, 24.0)
    with pytest.raises(SizeError, match=message):
        two_stage(Run(nowhere), clip, contexts, [], ("none", 1.0))


def test_requests_without_what_a_pipeline_needs_are_refused(networks, contexts, small):
    clip = replace(small, height=128, width=128)
    run, frames = Run(networks), torch.zeros(9, 64, 64, 3, dtype=torch.uint8)
    with pytest.raises(MismatchError, match="AudioTrackGuide"):
        audio_to_video(run, clip, contexts, [], ("none", 1.0))
    video = ReferenceVideoGuide(frames)
    voice = ReferenceAudioGuide(Sound(torch.zeros(1, 1600), 16000))
    with pytest.raises(MismatchError, match="exactly one LoRA"):
        dub(run, clip, contexts, video, voice, Settings())
    with pytest.raises(SizeError, match="start before it ends"):
        retake(run, 24.0, contexts, RetakeGuide(frames, 0.3, 0.1))
    with pytest.raises(SizeError, match="must have a length"):
        text_to_audio(run, 0, 24.0, contexts)
    with pytest.raises(CheckpointError, match="needs a file for the upsampler"):
        distilled(Run(Networks.of(CHECKPOINTS / "ltx2_23_tiny.safetensors")), clip, contexts,
                  settings=FAST)  # fmt: skip


def test_a_reference_off_the_grid_of_its_lora_is_refused(networks, contexts, small):
    clip = replace(small, height=128, width=192)
    guide = ReferenceVideoGuide(torch.zeros(9, 64, 96, 3, dtype=torch.uint8))
    loras = ((CHECKPOINTS / "ltx2_23_tiny_iclora.safetensors", 1.0),)
    with pytest.raises(SizeError, match="downscale factor 2"):
        ic_lora(Run(networks), clip, contexts, [guide], replace(FAST, loras=loras))


def test_files_that_do_not_belong_together_are_named(networks):
    networks.check(KINDS, [(CHECKPOINTS / "ltx2_23_tiny_lora_lightricks.safetensors", 1.0)])
    with pytest.raises(EngineError):
        networks.check(KINDS, [(CHECKPOINTS / "ltx2_20_tiny_lora_distilled_bf16.safetensors", 1.0)])
    rational = ROOT / "pipelines" / "ltx2_20_tiny_upsampler_x2.safetensors"
    with pytest.raises(MismatchError, match="version"):
        replace(networks, files={**networks.files, "upsampler": rational}).check(KINDS)


def test_a_network_is_gone_after_its_block(tiny):
    with tiny.use("video_decoder") as decoder:
        assert all(not parameter.is_meta for parameter in decoder.parameters())
    assert all(tensor.is_meta for tensor in decoder.state_dict().values())


def test_a_network_is_gone_after_an_error(tiny):
    with pytest.raises(RuntimeError), tiny.use("video_decoder") as decoder:
        raise RuntimeError
    assert all(tensor.is_meta for tensor in decoder.state_dict().values())


def test_disposing_one_network_leaves_others_of_the_same_file(tiny):
    path = tiny.files["video_encoder"]
    one, other = load("video_encoder", path), load("video_encoder", path)
    dispose(one)
    assert all(not tensor.is_meta for tensor in other.state_dict().values())
    statistics = tiny.statistics()
    assert torch.equal(statistics.normalize(statistics.un_normalize(torch.ones(1, 8, 1, 1, 1))),
                       torch.ones(1, 8, 1, 1, 1))  # fmt: skip


def test_defaults_are_the_authors(contexts):
    stage = guided(contexts, Settings(), preset("2.3"))
    assert len(stage.sigmas) == 31
    assert (stage.guidance.video.cfg, stage.guidance.audio.cfg) == (3.0, 7.0)
    assert stage.guidance.video.stg_blocks == (28,)
    assert unguided(contexts, Settings()).guidance == Streams()
    assert len(unguided(contexts, Settings()).sigmas) == 9


def test_distilled_is_ancestral_from_25_on(monkeypatch, networks, contexts, small):
    told = {}
    monkeypatch.setattr(Networks, "version", property(lambda _: "2.5"))
    clip = replace(small, height=128, width=128)
    distilled(Run(networks, tell=told.__setitem__), clip, contexts, settings=FAST)
    assert told["stage1.stage"].sampler == "euler_ancestral"
    assert told["stage2.stage"].sampler == "euler"
