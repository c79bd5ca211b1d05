import json
import math
import struct
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_checkpoint import write_checkpoint, write_lora

from aiprod_engine.cli import main
from aiprod_engine.errors import MismatchError
from aiprod_engine.memory.plan import Need, Way, Weights, plan
from aiprod_engine.memory.residency import Residency
from aiprod_engine.pipelines.networks import Networks
from aiprod_engine.pipelines.stored import rebuilt_bytes, stored_weights
from aiprod_engine.weights import load
from aiprod_engine.weights.recipe import LoraUse, Recipe
from aiprod_engine.weights.swap import AdaptedNetwork

BLOCK = 100
NETWORK = Weights(50, (BLOCK,) * 10)
PHASES = [
    Need("encode", (Weights(300),), (Way("", 20),)),
    Need("sample", (NETWORK,), (Way("all at once", 400), Way("one by one", 100, 4))),
]


def planned(free, policy="auto", needs=PHASES):
    obeying = [
        replace(need, networks=tuple(replace(one, policy=policy) for one in need.networks))
        for need in needs
    ]
    return plan(obeying, free / 0.9)  # the margin is kept free


def test_everything_stays_where_it_fits():
    found = planned(50 + 1000 + 400)
    sample = found.phase("sample")
    assert (sample.resident, sample.streamed, sample.way) == (10, 0, "all at once")
    assert sample.peak == 1450
    assert found.fits
    assert found.peak == 1450


def test_what_does_not_fit_streams_and_the_rest_stays():
    sample = planned(50 + 510 + 400).phase("sample")
    assert (sample.resident, sample.streamed) == (3, 7)  # and a ring of two
    assert sample.weights == 50 + 5 * BLOCK
    # one by one, 4 blocks would stream instead of 7, but four times
    assert (sample.way, sample.copied) == ("all at once", 7 * BLOCK)


def test_a_smaller_way_is_taken_where_it_spares_copies():
    sample = planned(50 + 1010 + 100).phase("sample")
    assert (sample.way, sample.resident, sample.copied) == ("one by one", 10, 0)
    cheap = Need("sample", (NETWORK,), (Way("whole", 400), Way("in parts", 100)))
    found = planned(50 + 510 + 400, needs=[cheap]).phase("sample")
    assert (found.way, found.streamed) == ("in parts", 4)


def test_ways_that_are_left_begin_with_one_that_fits_and_become_smaller():
    ways = tuple(Way(name, size) for name, size in (("a", 9), ("b", 12), ("c", 5), ("d", 5)))
    need = Need("decode", (), ways)
    assert [w.name for w in need.ways_within(math.inf, ways[0])] == ["a", "c"]
    assert [w.name for w in need.ways_within(8, ways[0])] == ["c"]
    assert [w.name for w in need.ways_within(2, ways[0])] == ["c"]
    assert [w.name for w in need.ways_within(20, ways[1])] == ["b", "c"]


def test_the_next_way_is_taken_where_not_even_streaming_helps():
    sample = planned(50 + 2 * BLOCK + 100).phase("sample")
    assert (sample.way, sample.resident, sample.fits) == ("one by one", 0, True)


def test_what_cannot_fit_is_said():
    found = planned(200)
    assert not found.fits
    assert found.phase("sample").way == "one by one"
    assert "does not fit: encode, sample" in found.summary()
    assert "DOES NOT FIT" in found.describe()


@pytest.mark.parametrize("free", [10, 350, 600, 1200, 5000])
def test_a_plan_that_fits_is_within_the_free_bytes(free):
    for phase in planned(free).phases:
        assert phase.fits == (phase.peak <= free)


def test_policies_are_obeyed():
    assert planned(5000, "stream").phase("sample").resident == 0
    resident = planned(600, "resident").phase("sample")
    assert (resident.resident, resident.fits) == (10, False)
    with pytest.raises(MismatchError, match="auto, resident, stream"):
        planned(600, "never")


def test_more_memory_never_streams_more():
    phases = [planned(free).phase("sample") for free in range(700, 1500, 10)]
    streamed = [phase.streamed for phase in phases]
    assert streamed == sorted(streamed, reverse=True)
    assert streamed[-1] == 0


def test_plan_is_frozen_and_described_in_one_line_per_phase():
    found = planned(1000)
    with pytest.raises(FrozenInstanceError):
        found.free = 3
    assert len(found.describe().splitlines()) == 1 + len(PHASES) + 1
    assert "\n" not in found.summary()


# From files --------------------------------------------------------------------------------------


@pytest.fixture
def write_sparse(tmp_path, manifests):
    """A sparse file of a published size: a header and tensors that take no space on the disk."""

    def write(name, *parts, metadata=None):
        head, end = {"__metadata__": metadata or {}}, 0
        for key, shape in manifests(*parts).items():
            kind, size = ("F32", 4) if "scale_shift_table" in key else ("BF16", 2)
            start, end = end, end + math.prod(shape) * size
            head[key] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(head).encode()
        path = tmp_path / f"{name}.safetensors"
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
        return str(path)

    return write


@pytest.fixture
def published(write_sparse):
    """Checkpoint 2.3 (46 GB) and Gemma (24 GB)."""
    parts = [f"{part}-2.3" for part in ("text", "video-vae", "audio-vae", "vocoder")]
    checkpoint = write_sparse(
        "checkpoint", "transformer-2.3-22b", *parts, metadata={"model_version": "2.3.0"}
    )
    return ["--checkpoint", checkpoint, "--text-encoder",
            write_sparse("gemma", "gemma3-12b-text-comfy")]  # fmt: skip


def rows(text):
    """Phase -> the rest of its line."""
    names = ("write prompt", "encode prompt", "connect prompt", "encode guides", "encode sound",
             "sample", "decode video", "decode audio")  # fmt: skip
    return {n: line.removeprefix(n) for n in names for line in text.splitlines()
            if line.startswith(n)}  # fmt: skip


def test_command_prints_the_plan_of_published_sizes(published, capsys):
    size = ["--width", "1280", "--height", "704", "--vram"]
    assert main(["plan", *published, *size, "12"]) == 0
    table = rows(capsys.readouterr().out)
    assert len(table) == 7
    assert "22 of 48" in table["encode prompt"]
    assert "5.91 GiB" in table["connect prompt"]  # 2.31 GB projection, 4.03 GB connectors
    assert " of 48" in table["sample"]
    assert "8 frames at a time" in table["decode video"]
    assert main(["plan", *published, *size, "80", "--enhance"]) == 0
    table = rows(capsys.readouterr().out)
    assert "35.37 GiB" in table["sample"]  # 48 x 773 MB and 0.85 GB outside
    assert "3.07 GiB" in table["write prompt"]  # of which 2.0 GB are the table of embeddings
    assert " of 48" not in table["sample"]


def test_command_refuses_sizes_off_the_grid(published, capsys):
    assert main(["plan", *published, "--vram", "12", "--width", "1000"]) == 2
    assert "width must be a multiple of 32" in capsys.readouterr().err


def test_weights_from_the_header_are_those_that_load(tmp_path):
    path = write_checkpoint(tmp_path / "tiny.safetensors", "2.3")
    networks = Networks.of(path, dtype=torch.bfloat16)
    for kind in networks.files:
        module = load(kind, path, dtype=torch.bfloat16)
        loaded = sum(tensor.nbytes for tensor in module.state_dict().values())
        assert stored_weights(networks.recipe(kind)).total == loaded, kind
    assert len(stored_weights(networks.recipe("transformer")).blocks) == 3
    assert rebuilt_bytes(networks.recipe("transformer")) == 0


def test_packed_weights_count_as_stored_and_their_decoding_as_activations(tmp_path):
    path = write_checkpoint(tmp_path / "tiny.safetensors", "2.3")
    tensors = load_file(path)
    key = "model.diffusion_model.transformer_blocks.1.ff.net.0.proj.weight"
    count = tensors[key].numel()
    tensors[key] = tensors[key].to(torch.float8_e4m3fn)
    tensors[f"{key}_scale"] = torch.tensor(1.0)
    packed = tmp_path / "packed.safetensors"
    with safe_open(path, "pt") as file:
        save_file(tensors, packed, file.metadata())
    before, after = (
        stored_weights(Networks.of(file, dtype=torch.bfloat16).recipe("transformer"))
        for file in (path, packed)
    )
    assert after.blocks[1] == before.blocks[1] - count + 4  # half the bytes, and a scale
    assert after.blocks[0] == before.blocks[0]
    assert rebuilt_bytes(Networks.of(packed).recipe("transformer")) == count * (4 + 4 + 2)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("precision", ["as stored", "fp8 storage"])
def test_adapters_count_where_they_lie(beside, precision, tmp_path):
    """Beside a weight they stay with it; fused into one they only travel with its block."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", "2.3")
    lora = write_lora(tmp_path / "lora.safetensors", "2.3", {})
    plain = Recipe("transformer", (str(path),), torch.bfloat16, precision=precision)
    recipe = plain.with_lora(LoraUse(str(lora), 1.0, 1.0, beside))
    network = AdaptedNetwork(recipe, lambda module: Residency(module, always_copies=True))
    network.use(recipe.loras)
    homes, found = network.holder._visits.homes, stored_weights(recipe)
    assert found.total > stored_weights(plain).total or not (beside or precision != "as stored")
    assert found.total == pytest.approx(network.holder.total_bytes, rel=0.02)  # alignment
    for sizes, real in ((found.blocks, [home.nbytes for home in homes]),
                        (found.travelling, [home.loaded_bytes for home in homes])):  # fmt: skip
        assert sizes == pytest.approx(real, rel=0.02)
    assert (found.travelling != found.blocks) == (not beside)
    off = replace(recipe, loras=(LoraUse(str(lora), 0.0, 0.0, beside),))
    assert stored_weights(off).total == stored_weights(plain).total


def test_sound_alone_counts_its_half(tmp_path):
    path = write_checkpoint(tmp_path / "tiny.safetensors", "2.3")
    recipe = Recipe("transformer", (str(path),), torch.bfloat16, modalities="audio")
    loaded = sum(t.nbytes for t in recipe.load().state_dict().values())
    assert stored_weights(recipe).total == loaded
    assert stored_weights(replace(recipe, modalities=None)).total > 2 * loaded


def test_what_travels_with_a_block_is_part_of_the_ring():
    need = Need("sample", (replace(NETWORK, loads=(BLOCK + 50,) * 10),), (Way("", 400),))
    assert need.least == 50 + 2 * 150
    sample = planned(50 + 510 + 400, needs=[need]).phase("sample")
    assert (sample.resident, sample.weights) == (2, 50 + 2 * BLOCK + 2 * 150)
    assert sample.copied == 8 * 150
