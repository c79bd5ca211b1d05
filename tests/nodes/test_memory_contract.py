"""The host's memory manager can load, count, evict and forget our networks."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from loaded_pack import on_device

pytestmark = pytest.mark.host


@pytest.fixture
def host(pack, node_types):
    from importlib import import_module

    return import_module("custom_nodes_x_aiprod.nodes._host")


@pytest.fixture
def recipe(host, models):
    from importlib import import_module

    recipes = import_module("custom_nodes_x_aiprod.aiprod_engine.weights.recipe")
    file = models / "checkpoints" / "ltx-2.3-22b-dev.safetensors"
    return recipes.Recipe("video_decoder", (str(file),), torch.float32)


def use(host, recipe) -> torch.Tensor:
    with on_device(host, recipe) as (decoder,):
        latent = torch.zeros(1, decoder.config.latent_channels, 1, 2, 2)
        return decoder(latent)


def test_weights_survive_a_second_load(host, recipe):
    first = use(host, recipe)
    handle = host._handles.get(recipe)
    assert handle.loaded_size() == handle.model_size() > 0
    assert torch.equal(use(host, recipe), first)
    assert host._handles.get(recipe) is handle


def test_eviction_between_two_uses_changes_nothing(host, recipe):
    first = use(host, recipe)
    host.mm.unload_all_models()
    assert host._handles.get(recipe).loaded_size() == 0
    assert torch.equal(use(host, recipe), first)


def test_two_networks_are_resident_together(host, recipe):
    other = type(recipe)("video_encoder", recipe.files, recipe.dtype)
    with on_device(host, recipe, other) as (decoder, encoder):
        assert decoder is not encoder
        sizes = [host._handles.get(r).loaded_size() for r in (recipe, other)]
    assert all(sizes)


def test_handle_and_network_die_with_the_last_recipe(host, recipe):
    own = replace(recipe, origin=None)
    other = replace(recipe, origin=None)
    use(host, own)
    handle = weakref.ref(host._handles.get(own))
    module = weakref.ref(handle().model)
    assert host._handles.get(other) is handle()  # equal, though of another loader
    del own
    gc.collect()
    assert module() is not None
    del other
    gc.collect()
    assert handle() is None
    assert module() is None
    host.mm.cleanup_models_gc()
    assert all(m.model is not None for m in host.mm.current_loaded_models)
