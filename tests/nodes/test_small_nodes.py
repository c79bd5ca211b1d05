"""Encoders, files, converters, upsampler and inspection, run in process on the tiny models."""

import pytest
import torch
from tiny_checkpoint import FILES

pytestmark = pytest.mark.host

WIDTH, HEIGHT, FRAMES, FPS = 64, 64, 9, 24.0


@pytest.fixture
def run(node_types):
    """Execute one node as the host does and return its outputs."""

    def execute(name: str, **inputs):
        with torch.inference_mode():
            return node_types[f"AIPROD{name}"].execute(**inputs).result

    return execute


@pytest.fixture
def checkpoint(run):
    """(model, text parts, video VAE, audio VAE) of the tiny 2.3 checkpoint."""
    return run("CheckpointLoader", checkpoint=FILES["2.3"]["dev"])


@pytest.fixture
def images():
    ramp = torch.linspace(0, 1, WIDTH).expand(HEIGHT, -1)
    return torch.stack((ramp, ramp.T, 1 - ramp), -1).expand(FRAMES, -1, -1, -1).clone()


@pytest.fixture
def sound():
    t = torch.arange(16_000) / 44_100
    return {"waveform": torch.sin(t * 2000)[None, None].expand(1, 2, -1), "sample_rate": 44_100}


@pytest.fixture
def clip(run, checkpoint, images, sound):
    (video,) = run("EncodeVideo", images=images, video_vae=checkpoint[2], fps=FPS)
    (both,) = run("EncodeAudio", audio=sound, audio_vae=checkpoint[3], latent=video)
    return both


def test_encoding_gives_a_clip_with_its_own_clock(clip):
    assert (clip.frames, clip.height, clip.width, clip.fps) == (FRAMES, HEIGHT, WIDTH, FPS)
    assert clip.version == "2.3"
    assert clip.video.shape[2:] == (2, 2, 2)
    assert clip.audio.shape[2] == round(FRAMES / FPS * 25)


def test_frames_beyond_the_grid_are_left_out_and_reported(run, checkpoint, images, caplog):
    (clip,) = run("EncodeVideo", images=images[:7], video_vae=checkpoint[2], fps=FPS)
    assert clip.frames == 1
    assert "8k + 1" in caplog.text


def test_decoded_clip_has_the_size_and_length_of_the_clip(run, checkpoint, clip):
    frames, fps = run("DecodeVideo", latent=clip, video_vae=checkpoint[2], tiling="auto")
    assert frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert frames.dtype == torch.float32
    assert 0 <= frames.min() <= frames.max() <= 1
    assert fps == FPS
    (audio,) = run("DecodeAudio", latent=clip, audio_vae=checkpoint[3])
    assert audio["waveform"].shape == (1, 2, round(FRAMES / FPS * audio["sample_rate"]))
    assert isinstance(audio["sample_rate"], int)


def test_streamed_video_is_the_decoded_clip(run, checkpoint, clip, tmp_path):
    (video,) = run("DecodeToVideo", latent=clip, video_vae=checkpoint[2], audio_vae=checkpoint[3])
    frames, _ = run("DecodeVideo", latent=clip, video_vae=checkpoint[2], tiling="auto")
    parts = video.get_components()
    assert torch.equal(parts.images, frames)
    assert video.get_dimensions() == (WIDTH, HEIGHT)
    assert video.get_duration() == pytest.approx(FRAMES / FPS)
    assert video.get_frame_count() == FRAMES
    video.save_to(str(tmp_path / "clip.mp4"), metadata={"prompt": {"1": "x"}})
    from mp4_check import problems, read_movie

    assert problems(read_movie(tmp_path / "clip.mp4"), FRAMES, WIDTH, HEIGHT, FPS) == []


def test_saved_clip_comes_back_bit_for_bit(run, clip):
    run("SaveLatent", latent=clip, filename_prefix="latents/test")
    from importlib import import_module

    host = import_module("custom_nodes_x_aiprod.nodes._host")
    (again,) = run("LoadLatent", file=host.list_saved("latents")[-1])
    assert torch.equal(again.video, clip.video)
    assert torch.equal(again.audio, clip.audio)
    assert (again.frames, again.fps, again.version) == (clip.frames, clip.fps, clip.version)


def test_saved_prompt_comes_back(run, checkpoint):
    (encoder,) = run(
        "TextEncoderLoader", text_parts=checkpoint[1], encoder="gemma_3_12B_it.safetensors"
    )
    positive, negative = run("EncodePrompt", text_encoder=encoder, text="a train", negative_text="")
    assert not torch.equal(positive.video, negative.video)
    run("SaveConditioning", conditioning=positive, filename_prefix="prompts/test")
    from importlib import import_module

    host = import_module("custom_nodes_x_aiprod.nodes._host")
    (again,) = run("LoadConditioning", file=host.list_saved("prompts")[-1])
    torch.testing.assert_close(again.video.float(), positive.video.float(), rtol=2**-8, atol=1e-6)
    assert again.version == positive.version


@pytest.mark.parametrize(
    "name", ["../../etc/passwd [output]", "/etc/passwd [input]", "gone.safetensors [output]", "x"]
)
def test_saved_files_never_lie_outside_their_folders(node_types, name):
    verdict = node_types["AIPRODLoadLatent"].validate_inputs(file=name)
    assert "must lie in the output or input folder" in verdict


def test_split_and_join_are_inverse(run, clip):
    video, audio, fps = run("SplitLatent", latent=clip)
    assert audio["type"] == "audio"
    (joined,) = run("JoinLatent", video_latent=video, audio_latent=audio, fps=fps)
    assert torch.equal(joined.video, clip.video)
    assert torch.equal(joined.audio, clip.audio)
    assert (joined.frames, joined.height, joined.width) == (clip.frames, clip.height, clip.width)


def test_a_joint_host_latent_goes_in_whole(run, clip):
    from comfy.nested_tensor import NestedTensor

    joint = {"samples": NestedTensor([clip.video, clip.audio])}
    (joined,) = run("JoinLatent", video_latent=joint, fps=FPS)
    assert torch.equal(joined.audio, clip.audio)


def test_wrong_shapes_are_named(run):
    with pytest.raises(Exception, match="5 dimensions"):
        run("JoinLatent", video_latent={"samples": torch.zeros(1, 4, 8, 8)}, fps=FPS)


def test_upsampler_doubles_the_picture_and_keeps_the_sound(run, checkpoint, clip):
    (upsampler,) = run("UpsamplerLoader", upsampler_file=FILES["2.3"]["upsampler"])
    (larger,) = run("UpsampleLatent", latent=clip, upsampler=upsampler, video_vae=checkpoint[2])
    assert (larger.height, larger.width, larger.frames) == (2 * HEIGHT, 2 * WIDTH, FRAMES)
    assert torch.equal(larger.audio, clip.audio)


def test_parts_of_another_release_are_refused(run, clip):
    other = run("CheckpointLoader", checkpoint=FILES["2.0"]["dev"])
    with pytest.raises(Exception, match="one LTX-2 release"):
        run("DecodeVideo", latent=clip, video_vae=other[2], tiling="auto")


def test_an_empty_clip_cannot_be_decoded(run, checkpoint):
    (empty,) = run("EmptyLatent", width=WIDTH, height=HEIGHT, frames=FRAMES, fps=FPS)
    with pytest.raises(Exception, match="no video to decode"):
        run("DecodeVideo", latent=empty, video_vae=checkpoint[2], tiling="auto")
    with pytest.raises(Exception, match="no sound to decode"):
        run("DecodeAudio", latent=empty, audio_vae=checkpoint[3])


def test_linked_sizes_off_the_grid_snap_and_say_so(run, caplog):
    (empty,) = run("EmptyLatent", width=100, height=70, frames=20, fps=FPS)
    assert (empty.width, empty.height, empty.frames) == (96, 64, 17)
    assert "off the grid" in caplog.text


def test_single_loaders_take_parts_out_of_a_checkpoint(run):
    file = FILES["2.3"]["dev"]
    (video_vae,) = run("VideoVAELoader", vae_file=file)
    (audio_vae,) = run("AudioVAELoader", vae_file=file)
    model, _ = run("TransformerLoader", transformer=file)
    assert {video_vae.info.version, audio_vae.info.version, model.info.version} == {"2.3"}


def test_inspection_names_the_file_and_its_fit(run):
    (text,) = run("InspectFile", file=FILES["2.3"]["dev"])
    assert "2.3" in text
    assert "video_vae" in text
    (text,) = run("InspectFile", file=FILES["2.3"]["dev"], fits_with=FILES["2.0"]["dev"])
    assert "2.0" in text.splitlines()[-1]


def test_a_lora_changes_the_result_and_a_wrong_one_is_refused(run, checkpoint):
    model = checkpoint[0]
    (changed,) = run("LoRA", model=model, lora=FILES["2.3"]["control_lora"], strength=1.0)
    assert changed.reference.spatial_factor == 2
    assert changed.transformer != model.transformer
    assert model.transformer.loras == ()
    (same,) = run("LoRA", model=model, lora=FILES["2.3"]["control_lora"], strength=0.0)
    assert same is model
    (other,) = run("TransformerLoader", transformer=FILES["2.0"]["dev"])[:1]
    with pytest.raises(Exception, match="this LoRA targets"):
        run("LoRA", model=other, lora=FILES["2.3"]["control_lora"], strength=1.0)
