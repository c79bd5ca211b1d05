"""What loaders hand out: recipes with the switch of their node, loaded once for everybody."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from threading import Barrier

import pytest
from tiny_checkpoint import FILES

pytestmark = pytest.mark.host

DEV, GEMMA = FILES["2.3"]["dev"], "gemma_3_12B_it.safetensors"
LOADERS = {
    "Checkpoint": {"checkpoint": DEV},
    "Transformer": {"transformer": DEV},
    "VideoVAE": {"vae_file": DEV},
    "AudioVAE": {"vae_file": DEV},
    "Upsampler": {"upsampler_file": FILES["2.3"]["upsampler"]},
}


def recipes_in(payloads) -> list:
    """Every recipe of some payloads."""
    values = [value for payload in payloads for value in vars(payload).values()]
    return [value for value in values if type(value).__name__ == "Recipe"]


def checks(payloads) -> set[bool]:
    return {recipe.check_values for recipe in recipes_in(payloads)}


@pytest.mark.parametrize("name", LOADERS)
def test_the_switch_of_a_loader_reaches_its_networks(name, node_types):
    loader, given = node_types[f"AIPROD{name}Loader"], LOADERS[name]
    assert checks(loader.execute(**given).result) == {True}
    assert checks(loader.execute(**given, check_values=False).result) == {False}


def test_the_switch_of_a_text_encoder_is_its_own(node_types):
    _, text_parts, *_ = node_types["AIPRODCheckpointLoader"].execute(checkpoint=DEV).result
    loader = node_types["AIPRODTextEncoderLoader"]
    for value in (True, False):
        given = {"text_parts": text_parts, "encoder": GEMMA, "check_values": value}
        (encoder,) = loader.execute(**given).result
        assert checks([encoder]) == {value}
        assert checks([encoder.parts]) == {True}


def test_two_threads_that_want_one_network_load_it_once(node_types, monkeypatch, models):
    pack = node_types["AIPRODLoRA"].__module__.partition(".")[0]
    recipes = import_module(f"{pack}.aiprod_engine.weights.recipe")
    handles = import_module(f"{pack}.nodes._host").Handles
    load, loaded, start = recipes.Recipe.load, [], Barrier(4)

    def slow(recipe):
        loaded.append(recipe)
        time.sleep(0.2)  # long enough for the others to come
        return load(recipe)

    monkeypatch.setattr(recipes.Recipe, "load", slow)
    own = handles(import_module(f"{pack}.nodes._host").device_of)
    file = str(models / "checkpoints" / DEV)
    wanted = [recipes.Recipe("vocoder", (file,)) for _ in range(start.parties)]

    def want(recipe):
        start.wait(10)
        return own.get(replace(recipe))

    with ThreadPoolExecutor(start.parties) as threads:
        found = list(threads.map(want, wanted))
    assert len(loaded) == 1
    assert all(handle is found[0] for handle in found)
