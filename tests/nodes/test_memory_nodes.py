"""Plan, Residency and Precision as users meet them, and memory that ends while a node computes."""

import weakref
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from goldens import ROOT
from loaded_pack import on_device

pytestmark = pytest.mark.host

CHECKPOINT, GEMMA = "ltx-2.3-22b-dev.safetensors", "gemma_3_12B_it.safetensors"
UPSAMPLER = "ltx-2.3-spatial-upscaler-x2-1.1.safetensors"


@pytest.fixture
def run(node_types):
    """`run("Sampler", model=...)`: outputs of one node."""

    def run(name, **inputs):
        with torch.inference_mode():
            return node_types[f"AIPROD{name}"].execute(**inputs).result

    return run


@pytest.fixture
def module(pack):
    return lambda name: import_module(f"custom_nodes_x_aiprod.{name}")


@pytest.fixture
def parts(run):
    """Payloads of a tiny checkpoint by socket name."""
    model, text_parts, video_vae, audio_vae = run("CheckpointLoader", checkpoint=CHECKPOINT)
    (encoder,) = run("TextEncoderLoader", text_parts=text_parts, encoder=GEMMA)
    (upsampler,) = run("UpsamplerLoader", upsampler_file=UPSAMPLER)
    return {"model": model, "text_encoder": encoder, "video_vae": video_vae,
            "audio_vae": audio_vae, "upsampler": upsampler}  # fmt: skip


@pytest.fixture
def empty(module):
    return module("aiprod_engine.types").AVLatent(None, None, 9, 64, 96, 24.0)


@pytest.fixture
def clip(module):
    generator = torch.Generator().manual_seed(2)
    video = torch.randn(1, 16, 2, 2, 3, generator=generator)
    audio = torch.randn(1, 2, 9, 16, generator=generator)
    return module("aiprod_engine.types").AVLatent(video, audio, 9, 64, 96, 24.0, "2.3")


def sample(run, parts, latent, **more):
    positive, _ = run("EncodePrompt", text_encoder=parts["text_encoder"], text="A fox.")
    (guider,) = run("Guider", positive=positive)
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    (done,) = run("Sampler", model=parts["model"], guider=guider, sigmas=sigmas, latent=latent,
                  sampler="euler", seed=1, **more)  # fmt: skip
    return done.video


WRITING = {"text": "a fox", "max_tokens": 32, "temperature": 0.7, "top_k": 50, "seed": 3}
PICTURE = torch.linspace(0, 1, 64 * 96 * 3).view(1, 64, 96, 3)
SOUND = {"waveform": torch.linspace(-1, 1, 6000).expand(1, 2, -1), "sample_rate": 16_000}


def seeing(payload):
    """The payload with an encoder that has the vision tensors."""
    file = ROOT / "text/files/comfy_single/tiny_gemma_comfy.safetensors"
    return replace(payload, encoder=replace(payload.encoder, files=(str(file),)))


def ids(written):
    """The text as a tensor of its characters."""
    return torch.tensor([ord(sign) for sign in written[0]])


WORK = {
    "encode prompt": (
        "nodes.text", "hidden_states",
        lambda run, p, _: run("EncodePrompt", text_encoder=p["text_encoder"], text="A")[0].video,
    ),
    "connect prompt": (
        "nodes.text", "contexts",
        lambda run, p, _: run("EncodePrompt", text_encoder=p["text_encoder"], text="A")[0].video,
    ),
    "write prompt": (
        "nodes.text", "write",
        lambda run, p, _: ids(run("EnhancePrompt", text_encoder=p["text_encoder"], **WRITING)),
    ),
    "look at the picture": (
        "nodes.text", "look_at",
        lambda run, p, _: ids(run("EnhancePrompt", text_encoder=seeing(p["text_encoder"]),
                                  image=PICTURE, **WRITING)),
    ),
    "encode guides": (
        "nodes.encode", "encode_frames",
        lambda run, p, _: run("EncodeVideo", images=PICTURE.expand(9, -1, -1, -1),
                              video_vae=p["video_vae"], fps=24.0)[0].video,
    ),
    "encode sound": (
        "nodes.encode", "encode_track",
        lambda run, p, clip: run("EncodeAudio", audio=SOUND, audio_vae=p["audio_vae"],
                                 latent=clip)[0].audio,
    ),
    "sample": ("aiprod_engine.models.transformer:Transformer", "forward", None),
    "upsample": (
        "nodes.upscale", "upsample",
        lambda run, p, clip: run("UpsampleLatent", latent=clip, upsampler=p["upsampler"],
                                 video_vae=p["video_vae"])[0].video,
    ),
    "decode video": (
        "aiprod_engine.models.video_vae.blocks:Conv", "window",
        lambda run, p, clip: run("DecodeVideo", latent=clip, video_vae=p["video_vae"],
                                 tiling="auto")[0],
    ),
    "decode audio": (
        "nodes.decode", "decode_track",
        lambda run, p, clip: run("DecodeAudio", latent=clip,
                                 audio_vae=p["audio_vae"])[0]["waveform"],
    ),
}  # fmt: skip


@pytest.fixture(params=WORK)
def phase(request, module, monkeypatch, run, parts, clip, empty):
    """(name, its work, `fail(calls)`): the given calls run out of memory."""
    place, name, work = WORK[request.param]
    path, _, owner = place.partition(":")
    place = getattr(module(path), owner) if owner else module(path)
    function, seen = getattr(place, name), []

    def fail(calls):
        def failing(*args, **options):
            seen.append(1)
            if len(seen) in calls:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return function(*args, **options)

        monkeypatch.setattr(place, name, failing)

    def compute():
        return work(run, parts, clip) if work else sample(run, parts, empty)

    return request.param, compute, fail


def test_memory_that_ends_once_changes_nothing(phase, caplog):
    name, compute, fail = phase
    caplog.set_level("INFO")
    expected = compute()
    assert f"{name}: needs " in caplog.text
    assert ", free " in caplog.text
    fail({1})
    assert torch.equal(compute(), expected)
    assert f"{name} ran out of memory; going on with" in caplog.text


def test_memory_that_is_not_there_is_one_sentence_and_frees_all(phase, module):
    name, compute, fail = phase
    errors, host = module("aiprod_engine.errors"), module("nodes._host")
    fail(range(1, 100_000))
    with pytest.raises(errors.OutOfMemory, match=f"^{name} must fit into memory: it needs .*; "):
        compute()
    assert not host.mm.current_loaded_models


@pytest.mark.parametrize(
    ("name", "guide", "where"),
    [
        ("encode guides", "ImageGuide", "encode_video"),
        ("encode guides", "ReferenceVideoGuide", "encode_video"),
        ("encode sound", "AudioTrackGuide", "encode_sound"),
        ("encode sound", "ReferenceAudioGuide", "encode_sound"),
    ],
)
def test_memory_may_end_while_a_sampler_encodes_its_guides(
    name, guide, where, run, parts, empty, module, monkeypatch, caplog
):
    guides, sampling = module("aiprod_engine.pipelines.guides"), module("nodes.sampling")
    frames = (PICTURE[0] * 255).byte()
    given = {
        "ImageGuide": frames,
        "ReferenceVideoGuide": frames.expand(9, -1, -1, -1),
        "AudioTrackGuide": guides.Sound(SOUND["waveform"][0], 16_000),
        "ReferenceAudioGuide": guides.Sound(SOUND["waveform"][0], 16_000),
    }[guide]
    payload = module("nodes._sockets").GuidesPayload(
        (getattr(guides, guide)(given),), parts["video_vae"], parts["audio_vae"]
    )
    caplog.set_level("INFO")
    expected = sample(run, parts, empty, guides=payload)
    assert f"{name}: needs " in caplog.text
    function, seen = getattr(sampling, where), []

    def failing(*args):
        seen.append(1)
        if len(seen) == 1:
            raise torch.cuda.OutOfMemoryError
        return function(*args)

    monkeypatch.setattr(sampling, where, failing)
    assert torch.equal(sample(run, parts, empty, guides=payload), expected)
    assert f"{name} ran out of memory; going on with" in caplog.text


def test_a_video_that_decodes_while_it_is_saved_never_dies(
    run, parts, clip, module, monkeypatch, tmp_path
):
    (video,) = run("DecodeToVideo", latent=clip, video_vae=parts["video_vae"],
                   audio_vae=parts["audio_vae"])  # fmt: skip
    expected = video.get_components().images
    conv = module("aiprod_engine.models.video_vae.blocks").Conv
    window, seen = conv.window, []

    def failing(*args):
        seen.append(1)
        if len(seen) == 7:
            raise torch.cuda.OutOfMemoryError
        return window(*args)

    monkeypatch.setattr(conv, "window", failing)
    assert torch.equal(video.get_components().images, expected)
    assert len(seen) > 7


# Residency ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["auto", "resident", "stream"])
def test_residency_travels_with_the_recipes(policy, run, parts, module):
    host = module("nodes._host")
    model, encoder = run("Residency", policy=policy, model=parts["model"],
                         text_encoder=parts["text_encoder"])  # fmt: skip
    for recipe in (model.transformer, encoder.encoder):
        assert recipe.residency == policy
        with on_device(host, recipe):
            assert host._handles.get(recipe).residency.policy == policy
    assert parts["model"].transformer.residency == "auto"


def test_residency_takes_either_wire_and_names_a_device(run, parts, module):
    model, encoder = run("Residency", policy="auto", model=parts["model"], device="cpu")
    assert encoder is None
    assert model.transformer.device == "cpu"
    assert module("nodes._host").device_of(model.transformer) == torch.device("cpu")
    with pytest.raises(module("aiprod_engine.errors").MismatchError, match="needs a model or a"):
        run("Residency", policy="auto")


def test_widgets_are_checked_on_every_host(node_types):
    check = node_types["AIPRODResidency"].validate_inputs
    assert check("auto") is True
    assert "policy must be one of auto, resident, stream" in check("sometimes")
    assert "device must be one of default, cpu" in check("auto", "cuda:99")
    assert "precision must be one of" in node_types["AIPRODPrecision"].validate_inputs("fp3")


# Precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["as stored", "bfloat16", "fp8 storage"])
def test_a_model_samples_in_every_precision(precision, run, parts, empty):
    (model,) = run("Precision", model=parts["model"], precision=precision)
    assert model.transformer.precision == precision
    assert sample(run, parts | {"model": model}, empty).isfinite().all()


def test_fp8_matmul_is_refused_where_it_cannot_be(run, parts, module):
    error = module("aiprod_engine.errors").MismatchError
    with pytest.raises(error, match="fp8 matmul needs a file with fp8 weights"):
        run("Precision", model=parts["model"], precision="fp8 matmul")


# Plan --------------------------------------------------------------------------------------------


def graph(**inputs) -> dict:
    return {
        "1": {"class_type": "AIPRODCheckpointLoader", "inputs": {"checkpoint": CHECKPOINT}},
        "2": {"class_type": "AIPRODEmptyLatent",
              "inputs": {"width": 96, "height": 64, "frames": 9, "fps": 24.0}},
        "3": {"class_type": "AIPRODPlan",
              "inputs": {"model": ["1", 0], "latent": ["2", 0], **inputs}},
    }  # fmt: skip


def test_a_plan_is_shown_and_nothing_is_loaded(client, running_host):
    before = running_host.log_text().count("Requested to load")
    (text,) = client.run(graph(video_vae=["1", 2])).outputs["3"]["text"]
    assert "sample" in text
    assert "decode video" in text
    assert "encode prompt" not in text
    assert running_host.log_text().count("Requested to load") == before
    assert "Plan: peak" in running_host.log_text()


def planned_phases(text):
    return [line.split("  ")[0] for line in text.splitlines()[1:-1]]


def test_a_plan_of_everything_has_a_line_per_phase(run, parts, empty, module, monkeypatch):
    (text,) = run("Plan", latent=empty, free_gib=12.0, **parts)
    phases = ["encode prompt", "connect prompt", "encode guides", "encode sound", "sample",
              "upsample", "sample again", "decode video", "decode audio"]  # fmt: skip
    assert planned_phases(text) == phases
    (text,) = run("Plan", latent=empty, free_gib=12.0, enhance=True, **parts)
    assert planned_phases(text) == ["write prompt", *phases]
    monkeypatch.setattr(module("nodes._host"), "preview_side", lambda: 512)
    (text,) = run("Plan", latent=empty, free_gib=12.0, **parts)
    assert planned_phases(text) == [*phases[:4], "fit preview", *phases[4:]]
    assert "free 12.00 GiB" in text
    with_guider = run("Plan", latent=empty, guider=guider(run, parts), **parts)[0]
    assert with_guider.endswith("4 evaluations a step")


def guider(run, parts):
    positive, negative = run("EncodePrompt", text_encoder=parts["text_encoder"], text="A fox.")
    strengths = {f"{s}_{n}": v for s in ("video", "audio") for n, v in
                 (("cfg", 3.0), ("stg", 1.0), ("modality", 3.0), ("rescale", 0.7))}  # fmt: skip
    return run("CFGGuider", positive=positive, negative=negative, stg_blocks="auto", skip_step=0,
               **strengths)[0]  # fmt: skip


def test_little_memory_streams_in_the_plan(run, parts, empty):
    (ample,) = run("Plan", model=parts["model"], latent=empty, free_gib=12.0)
    assert ample.splitlines()[1].split()[-6:] == ["all", "one", "pass", "at", "a", "time"]
    (stream,) = run("Residency", policy="stream", model=parts["model"])[:1]
    (text,) = run("Plan", model=stream, latent=empty, free_gib=12.0)
    assert "0 of 3" in text
    assert "streams: sample" in text


def test_a_policy_of_its_own_is_the_same_network(run, parts, module):
    host = module("nodes._host")
    model = run("Residency", policy="stream", model=parts["model"])[0]
    with on_device(host, parts["model"].transformer) as (one,):
        pass
    with on_device(host, model.transformer) as (other,):
        assert other is one


def test_another_precision_is_a_network_that_dies_alone(run, parts, module):
    host = module("nodes._host")
    model = run("Precision", precision="fp8 storage", model=parts["model"])[0]
    with on_device(host, model.transformer):
        handle = weakref.ref(host._handles.get(model.transformer))
    del model
    assert handle() is None
