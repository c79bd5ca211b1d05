"""Between its stages a transformer is kept: loaded once, with other adapters in each."""

import pytest
import torch
from goldens import ROOT

from aiprod_engine.errors import MismatchError
from aiprod_engine.memory.plan import Need, Way, Weights
from aiprod_engine.pipelines import networks as module
from aiprod_engine.pipelines.networks import Networks
from aiprod_engine.pipelines.stored import stored_weights
from aiprod_engine.types import Modality
from aiprod_engine.weights import load
from aiprod_engine.weights.recipe import LoraUse, Recipe

CHECKPOINTS = ROOT / "checkpoints"
FILE = CHECKPOINTS / "ltx2_23_tiny.safetensors"
LORA = CHECKPOINTS / "ltx2_23_tiny_lora_lightricks.safetensors"
OTHER = CHECKPOINTS / "ltx2_23_tiny_iclora.safetensors"
STAGES = (((LORA, 0.25),), ((OTHER, 1.0), (LORA, {"video": 0.5, "audio": -0.2})), ())
AMPLE = 1 << 30


@pytest.fixture
def loads(monkeypatch):
    """The kinds of the networks that were loaded."""
    seen, read = [], Recipe.load

    def counting(self):
        seen.append(self.kind)
        return read(self)

    monkeypatch.setattr(Recipe, "load", counting)
    return seen


def made(budget=None, **fields) -> Networks:
    return Networks(dict.fromkeys(("transformer", "video_decoder"), FILE), budget=budget, **fields)


def need(recipe: Recipe, activations: int = 0) -> Need:
    return Need("phase", (stored_weights(recipe),), (Way("", activations),))


@torch.no_grad()
def velocities(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    own = model.patchify_proj.weight

    def stream(side, tokens):
        return Modality(
            tokens=torch.randn(1, tokens, side.in_channels, generator=generator).to(own.dtype),
            sigma=torch.ones(1),
            timesteps=torch.ones(1, 1, 1),
            positions=torch.rand(1, len(side.max_pos), tokens, 2, generator=generator),
            context=torch.randn(1, 4, side.dim, generator=generator).to(own.dtype),
        )

    done = model(stream(model.config.video, 6), stream(model.config.audio, 3))
    return torch.cat([side.flatten() for side in done])


def stage(networks: Networks, loras) -> torch.Tensor:
    recipe = networks.recipe("transformer", loras)
    with networks.place(need(recipe), recipe) as placed:
        return placed.run(velocities)


def fresh(loras, dtype=None) -> torch.Tensor:
    return velocities(load("transformer", FILE, dtype=dtype, loras=loras))


@pytest.mark.parametrize("budget", [None, AMPLE, 1])
def test_stages_share_one_transformer_and_compute_what_loading_gives(loads, budget):
    networks = made(budget, policy="auto")
    for loras in STAGES * 2:
        assert torch.equal(stage(networks, loras), fresh(loras))
        recipe = networks.recipe("video_decoder")
        with networks.place(need(recipe), recipe):
            pass
    assert loads.count("transformer") == 1
    assert loads.count("video_decoder") == 2 * len(STAGES)


def test_copies_stay_on_the_device_until_a_phase_needs_the_room():
    networks = made(AMPLE)
    stage(networks, STAGES[0])
    (kept,) = networks._kept
    placed = kept.holder.placed_bytes
    assert placed == kept.holder.total_bytes
    recipe = networks.recipe("video_decoder")
    with networks.place(need(recipe), recipe) as phase:
        assert kept.holder.placed_bytes == placed
        assert phase.free <= AMPLE - placed  # what is kept is not free
    with networks.place(need(recipe, activations=int(AMPLE * 0.9) - placed), recipe):
        assert kept.holder.placed_bytes == 0
    assert torch.equal(stage(networks, STAGES[1]), fresh(STAGES[1]))


def test_what_is_kept_leaves_when_memory_runs_out():
    networks, seen = made(AMPLE), []
    stage(networks, STAGES[0])

    def runs_out(_):
        seen.append(networks._kept[0].holder.placed_bytes)
        if len(seen) == 1:
            raise torch.cuda.OutOfMemoryError
        return "done"

    with networks.use("video_decoder") as decoder:
        assert decoder is not None
    recipe = networks.recipe("video_decoder")
    with networks.place(need(recipe), recipe) as placed:
        assert placed.run(runs_out) == "done"
    assert seen[0] > 0
    assert seen[1] == 0


def test_nothing_of_a_transformer_is_kept_that_would_hold_memory(loads, monkeypatch):
    monkeypatch.setattr(module, "_KEPT", 0)
    networks = made(dtype=torch.float32)  # converted: copies on the CPU
    for loras in STAGES[:2]:
        assert torch.equal(stage(networks, loras), fresh(loras, torch.float32))
        assert not networks._kept
    assert len(loads) == 2


def test_after_an_error_nothing_is_kept():
    networks = made(AMPLE)
    recipe = networks.recipe("transformer")
    with pytest.raises(RuntimeError), networks.place(need(recipe), recipe) as placed:
        raise RuntimeError
    assert not networks._kept
    assert all(tensor.is_meta for tensor in placed.networks[0].state_dict().values())


def test_another_transformer_takes_its_place():
    networks = made(AMPLE)
    stage(networks, ())
    recipe = networks.recipe("transformer", modalities="audio")
    with networks.place(Need("phase", (Weights(1),), (Way("", 0),)), recipe):
        assert not networks._kept
    (kept,) = networks._kept
    assert kept.recipe.modalities == "audio"


def test_strengths_of_both_streams_reach_the_recipe():
    uses = made().recipe("transformer", STAGES[1]).loras
    assert uses == (LoraUse(str(OTHER), 1.0, 1.0), LoraUse(str(LORA), 0.5, -0.2))
    with pytest.raises(MismatchError, match="a strength is"):
        made().recipe("transformer", ((LORA, {"video": 1.0}),))
