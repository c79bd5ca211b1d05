"""Recipes that differ only in adapters share one loaded network, on the host's memory manager."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from loaded_pack import on_device
from tiny_checkpoint import FILES

pytestmark = pytest.mark.host
CPU = torch.device("cpu")
PACK = "custom_nodes_x_aiprod"
STRENGTHS = (0.25, 0.5)  # of the distilled LoRA in both stages of the HQ workflow


@pytest.fixture
def host(pack, node_types):
    return import_module(f"{PACK}.nodes._host")


@pytest.fixture
def base(host, models, tmp_path):
    """The recipe of a loader's output, of a file that no other test loads."""
    recipes = import_module(f"{PACK}.aiprod_engine.weights.recipe")
    file = tmp_path / "transformer.safetensors"
    file.write_bytes((models / "checkpoints" / FILES["2.3"]["dev"]).read_bytes())
    return recipes.Recipe("transformer", (str(file),), torch.bfloat16)


@pytest.fixture
def lora(host, models):
    """`lora(strength)`: a use of the distilled LoRA."""
    use = import_module(f"{PACK}.aiprod_engine.weights.recipe").LoraUse
    file = str(models / "loras" / FILES["2.3"]["distilled_lora"])
    return lambda strength, kind=file: use(kind, strength, strength)


@pytest.fixture
def loads(monkeypatch):
    """The networks that were loaded, as they come."""
    recipe, seen = import_module(f"{PACK}.aiprod_engine.weights.recipe").Recipe, []
    load = recipe.load

    def counting(self):
        seen.append(self)
        return load(self)

    monkeypatch.setattr(recipe, "load", counting)
    return seen


def velocities(network):
    modality = import_module(f"{PACK}.aiprod_engine.types").Modality
    generator = torch.Generator().manual_seed(0)
    own = next(network.patchify_proj.parameters())

    def stream(side, tokens):
        return modality(
            tokens=torch.randn(1, tokens, side.in_channels, generator=generator).to(own.dtype),
            sigma=torch.ones(1),
            timesteps=torch.ones(1, 1, 1),
            positions=torch.rand(1, len(side.max_pos), tokens, 2, generator=generator),
            context=torch.randn(1, 4, side.dim, generator=generator).to(own.dtype),
        )

    with torch.inference_mode():
        config = network.config
        return torch.cat([x.flatten() for x in network(stream(config.video, 6),
                                                       stream(config.audio, 3))])  # fmt: skip


def run(host, recipe):
    with on_device(host, recipe) as (network,):
        return velocities(network)


def afresh(recipe):
    """What a network computes into which `load` fused the adapters."""
    load = import_module(f"{PACK}.aiprod_engine.weights").load
    loras = [(use.path, {"video": use.video, "audio": use.audio}) for use in recipe.loras]
    return velocities(load(recipe.kind, recipe.files, dtype=recipe.dtype, loras=loras))


def as_device(handle):
    """Let the CPU play the device of a handle: copies, and a ring where blocks stream."""
    handle.detach()
    handle.residency.always_copies = True


@pytest.mark.parametrize("plays_device", [False, True])
@pytest.mark.parametrize("policy", ["auto", "stream"])
def test_two_samplers_with_other_strengths_alternate(host, base, lora, loads, policy, plays_device):
    base = replace(base, residency=policy)
    first, second = (base.with_lora(lora(strength)) for strength in STRENGTHS)
    before = len(host._handles)
    handle = host._handles.get(base)
    assert len(host._handles) == before + 1
    if plays_device:
        as_device(handle)
    expected = {recipe: afresh(recipe) for recipe in (first, second, base)}
    for recipe in (first, second, first, base, second):
        assert torch.equal(run(host, recipe), expected[recipe])
        assert host._handles.get(recipe) is handle
    assert not torch.equal(expected[first], expected[second])
    assert len(host._handles) == before + 1
    assert len(loads) == 1


def test_eviction_between_two_nodes_changes_nothing(host, base, lora):
    first, second = (base.with_lora(lora(strength)) for strength in STRENGTHS)
    as_device(host._handles.get(base))
    expected = [afresh(first), afresh(second)]
    for evict in (
        host.mm.unload_all_models,
        lambda: host._handles.get(first).partially_unload(CPU, 1e30),
        lambda: host._handles.get(second).detach(),
    ):
        for recipe, wanted in zip((first, second), expected, strict=True):
            assert torch.equal(run(host, recipe), wanted)
            evict()


def test_a_new_strength_in_the_interface_loads_nothing(host, base, lora, loads):
    """The LoRA node runs again and its old output dies; the loader's output stays cached."""
    recipe = base.with_lora(lora(0.25))
    run(host, recipe)
    network = weakref.ref(host._handles.get(recipe).model)
    for strength in (0.3, 0.4):
        del recipe
        gc.collect()
        recipe = base.with_lora(lora(strength))
        run(host, recipe)
        assert host._handles.get(recipe).model is network()
    assert len(loads) == 1


def test_a_swap_reads_what_the_adapters_touch(host, base, lora, models):
    few = str(models / "loras" / FILES["2.3"]["control_lora"])
    one, other = base.with_lora(lora(0.5, few)), base.with_lora(lora(0.9, few))
    handle = host._handles.get(base)
    as_device(handle)
    run(host, one)
    done = handle.network.use(other.loras)
    tensors = dict(handle.model.named_parameters())
    assert 0 < done.bytes_read == sum(tensors[name].nbytes for name in done.tensors)
    assert handle.network.use(other.loras).bytes_read == 0


def test_nobody_takes_the_adapters_of_a_run(host, base, lora):
    first, second = (base.with_lora(lora(strength)) for strength in STRENGTHS)
    errors = import_module(f"{PACK}.aiprod_engine.errors")
    with on_device(host, first) as (network,):
        expected = velocities(network)
        with on_device(host, base.with_lora(lora(STRENGTHS[0]))) as (same,):
            assert same is network
        with pytest.raises(errors.MismatchError, match="one set of LoRAs at a time"):
            run(host, second)
        assert torch.equal(velocities(network), expected)
    run(host, second)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("full"), KeyboardInterrupt()])
def test_a_swap_that_ends_half_way_is_repaired_at_the_next_use(
    host, base, lora, loads, error, monkeypatch
):
    first, second = (base.with_lora(lora(strength)) for strength in STRENGTHS)
    handle = host._handles.get(base)
    as_device(handle)
    run(host, first)
    home = import_module(f"{PACK}.aiprod_engine.memory.home")
    write, calls = home._write, []

    def fails(*args):
        calls.append(1)
        if len(calls) == 20:
            raise error
        write(*args)

    monkeypatch.setattr(home, "_write", fails)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            run(host, second)
    else:
        assert torch.equal(run(host, second), afresh(second))
    assert len(calls) >= 20
    assert torch.equal(run(host, first), afresh(first))
    assert torch.equal(run(host, second), afresh(second))
    assert len(loads) == 1


def test_two_threads_build_one_network(host, base, loads):
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(host._handles.get, (base, replace(base, origin=None)))
    assert one is other
    assert len(loads) == 1


def test_a_file_that_was_replaced_is_another_network(host, base):
    run(host, base)
    first, file = host._handles.get(base), Path(base.files[0])
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data)
    assert host._handles.get(base) is not first
