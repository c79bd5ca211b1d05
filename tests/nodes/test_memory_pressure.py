"""The calls that the host makes when memory is short, on a CPU that plays the device."""

from importlib import import_module

import pytest
import torch

pytestmark = pytest.mark.host
CPU = torch.device("cpu")


@pytest.fixture
def handle(pack, node_types, models):
    host = import_module("custom_nodes_x_aiprod.nodes._host")
    recipes = import_module("custom_nodes_x_aiprod.aiprod_engine.weights.recipe")
    file = models / "checkpoints" / "ltx-2.3-22b-dev.safetensors"
    handle = host.Handle(recipes.Recipe("transformer", (str(file),), torch.float32), CPU)
    handle.residency.always_copies = True
    yield handle
    handle.detach()


def velocities(handle):
    modality = import_module("custom_nodes_x_aiprod.aiprod_engine.types").Modality
    config = handle.model.config
    generator = torch.Generator().manual_seed(0)

    def stream(side, tokens):
        return modality(
            tokens=torch.randn(1, tokens, side.in_channels, generator=generator),
            sigma=torch.ones(1),
            timesteps=torch.ones(1, 1, 1),
            positions=torch.rand(1, len(side.max_pos), tokens, 2, generator=generator),
            context=torch.randn(1, 4, side.dim, generator=generator),
        )

    with torch.inference_mode():
        return handle.model(stream(config.video, 6), stream(config.audio, 3))


def test_pressure_streams_blocks_and_changes_no_bit(handle):
    handle.partially_load(CPU, 1e32)
    assert handle.loaded_size() == handle.model_size()
    expected = velocities(handle)
    block = handle.residency._visits.sizes[0]

    freed = handle.partially_unload(CPU, block)
    assert freed == block  # all three blocks leave, two slots take their place
    assert handle.loaded_size() == handle.model_size() - block
    assert handle.residency.resident_blocks == ()
    for one, other in zip(velocities(handle), expected, strict=True):
        assert torch.equal(one, other)

    handle.detach(unpatch_all=False)  # the host sorts its list
    assert handle.loaded_size() == handle.model_size() - block
    handle.partially_load(CPU, 1e32)
    assert handle.loaded_size() == handle.model_size()
    for one, other in zip(velocities(handle), expected, strict=True):
        assert torch.equal(one, other)

    handle.detach()
    assert handle.loaded_size() == 0
    assert handle.current_loaded_device() == handle.offload_device


def test_almost_no_memory_still_loads(handle):
    handle.partially_load(CPU, 0.1)  # what the host grants with --novram
    assert handle.residency.resident_blocks == ()
    assert all(torch.isfinite(side).all() for side in velocities(handle))
    assert handle.partially_unload(CPU, 1) == 0
    assert handle.partially_unload_ram(1) == 0  # nothing is page-locked without CUDA
    assert all(torch.isfinite(side).all() for side in velocities(handle))
