"""The shipped graphs give exactly what the engine's pipelines give: same seed, bit for bit."""

from importlib import import_module

import pytest
import torch
from shipped import FPS, FRAMES, HEIGHT, WIDTH, small
from tiny_checkpoint import FILES
from workflow_form import is_link

pytestmark = pytest.mark.host

STEPS = 3


@pytest.fixture
def engine(pack):
    """A module of the pack's own engine: two copies would have two sets of classes."""

    def module(name: str):
        return import_module(f"custom_nodes_x_aiprod.aiprod_engine.{name}")

    return module


def evaluate(prompt: dict, key: str, node_types: dict, done: dict):
    """Outputs of one node of a graph, with everything that it needs."""
    if key not in done:
        node = prompt[key]
        inputs = {
            name: evaluate(prompt, value[0], node_types, done)[value[1]]
            if is_link(value)
            else value
            for name, value in node["inputs"].items()
        }
        with torch.inference_mode():
            done[key] = node_types[node["class_type"]].execute(**inputs).result
    return done[key]


def last_sampler(prompt: dict) -> str:
    return [key for key, node in prompt.items() if node["class_type"] == "AIPRODSampler"][-1]


def settings_of(engine, models, version: str, kind: str):
    """(run, contexts of the graph's prompts) on the same files."""
    names = FILES[version]
    networks = engine("pipelines.networks").Networks.of(
        models / "checkpoints" / names[kind],
        models / "text_encoders" / "gemma_3_12B_it.safetensors",
        models / "latent_upscale_models" / names["upsampler"],
        dtype=torch.float32,
    )
    return engine("pipelines.run").Run(networks, seed=10)


def contexts_of(engine, networks, prompt: dict):
    (text,) = [n["inputs"] for n in prompt.values() if n["class_type"] == "AIPRODEncodePrompt"]
    encode = engine("pipelines.prompts").encode_prompts
    with torch.inference_mode():
        pair = encode(networks, [text["text"], text["negative_text"]])
    return engine("sampling.denoise").Contexts(*pair)


def empty(engine, scale: int = 1):
    return engine("types").AVLatent(None, None, FRAMES, HEIGHT * scale, WIDTH * scale, FPS)


def assert_same(clip, expected):
    assert torch.equal(clip.video, expected.video)
    assert torch.equal(clip.audio, expected.audio)


@pytest.mark.parametrize("version", FILES)
def test_text_to_video(version, node_types, engine, models):
    prompt = small("text_to_video", version)
    (clip,) = evaluate(prompt, last_sampler(prompt), node_types, {})
    run = settings_of(engine, models, version, "dev")
    settings = engine("pipelines.run").Settings(steps=STEPS)
    contexts = contexts_of(engine, run.networks, prompt)
    expected = engine("pipelines.one_stage").one_stage(
        run, empty(engine), contexts, settings=settings
    )
    assert_same(clip, expected)


@pytest.mark.parametrize("version", FILES)
def test_distilled_two_stages(version, node_types, engine, models):
    prompt = small("text_to_video_distilled", version)
    (clip,) = evaluate(prompt, last_sampler(prompt), node_types, {})
    run = settings_of(engine, models, version, "distilled")
    contexts = contexts_of(engine, run.networks, prompt)
    plain = engine("sampling.denoise").Contexts(contexts.positive)
    expected = engine("pipelines.distilled").distilled(run, empty(engine, 2), plain)
    assert_same(clip, expected)


def test_hq_two_stages(node_types, engine, models):
    prompt = small("text_to_video_hq", "2.3")
    done = {}
    (clip,) = evaluate(prompt, last_sampler(prompt), node_types, done)
    run = settings_of(engine, models, "2.3", "dev")
    contexts = contexts_of(engine, run.networks, prompt)
    lora = models / "loras" / FILES["2.3"]["distilled_lora"]
    settings = engine("pipelines.run").Settings(steps=STEPS)
    expected = engine("pipelines.two_stage").two_stage_hq(
        run, empty(engine, 2), contexts, [], lora, settings
    )
    # 0.25 twice and 0.5 once are the same sum up to float32 rounding of the fused weights
    torch.testing.assert_close(clip.video, expected.video, rtol=0, atol=2e-3)


def test_inputs_of_every_node_are_left_as_they_were(node_types, models):
    prompt = small("text_to_video_hq", "2.3")
    done: dict = {}
    evaluate(prompt, last_sampler(prompt), node_types, done)
    frozen = {key: [snapshot(value) for value in values] for key, values in done.items()}
    for key in list(prompt):
        if prompt[key]["class_type"].startswith("AIPRODSampler"):
            again = {k: v for k, v in done.items() if k != key}
            evaluate(prompt, key, node_types, again)
    assert frozen == {key: [snapshot(value) for value in values] for key, values in done.items()}


def snapshot(value):
    """Something comparable that changes whenever a payload changes."""
    if isinstance(value, torch.Tensor):
        return value.double().sum().item(), tuple(value.shape)
    if hasattr(value, "__dataclass_fields__"):
        return {name: snapshot(getattr(value, name)) for name in value.__dataclass_fields__}
    return repr(value)
