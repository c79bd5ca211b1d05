"""The loading benchmark at a small size: its structure, and what must hold on any machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "load.py"
# Bookkeeping, thread stacks and allocator arenas of a process, whatever the file's size.
ALLOWANCE = 40 << 20
SWAPS = ("swap_lora", "drop_lora", "swap_beside")


pytestmark = pytest.mark.slow  # one process per measurement


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, str(BENCHMARK), "--size", "0.12", "--rank", "2", "--threads", "1"]
    command += ["--passes", "1"]
    command += ["--json", str(folder / "load.json"), "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads((folder / "load.json").read_text())
    assert [path.name for path in folder.iterdir()] == ["load.json"]  # its files are gone
    return found | {"printed": done.stdout}


def test_every_measurement_is_printed_with_its_ratios(results):
    ours = ("read", "load", "load_cast", "load_lora", "inspect_full", "open_full")
    for name in (*ours, "place", "place_lora", "stream_lora", *SWAPS):
        assert results[name]["seconds"] > 0, results[name]
        assert name in results["printed"]
    assert "was not run: give --peer-python" in results["printed"]
    for name, value in results["ratios"].items():
        assert f"{name}: {value:.2f}" in results["printed"]
    assert results["ratios"].keys() >= {"load / read", "swap LoRA / place with LoRA"}


def test_the_file_is_of_the_published_format_and_of_the_asked_size(results):
    assert 0.08e9 < results["bytes"] < 0.16e9
    assert 4 * results["largest"] < results["bytes"]


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is told apart on Linux only")
def test_loading_takes_no_second_copy(results):
    assert results["load"]["anonymous"] <= 1.1 * results["largest"] + ALLOWANCE
    assert results["load"]["mapped"] > results["bytes"]
    beside = results["load_cast"]["anonymous"] - results["load_cast"]["held"]
    assert beside <= 1.1 * results["largest"] + ALLOWANCE


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is told apart on Linux only")
def test_adapters_take_no_copy_of_the_model_beside_the_device(results):
    for name in ("place_lora", "stream_lora", *SWAPS):
        assert results[name]["anonymous"] <= ALLOWANCE, name
        assert results[name]["held"] <= ALLOWANCE, name
    assert results["load_lora"]["anonymous"] > 0.9 * results["bytes"]  # the CPU computes with it


def test_a_swap_reads_the_touched_weights_once(results):
    for name in ("swap_lora", "drop_lora"):
        assert 0.9 * results["bytes"] < results[name]["bytes_read"] <= results["bytes"]
        assert results[name]["tensors"] > 50
    assert results["swap_beside"]["bytes_read"] == 0
    assert results["swap_beside"]["tensors"] > 50
