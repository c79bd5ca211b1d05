"""The memory benchmark at a small size: ratios that must hold on any machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "memory.py"

pytestmark = [
    pytest.mark.slow,  # one process per measurement
    pytest.mark.skipif(sys.platform != "linux", reason="reads the resident set of Linux"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    file = tmp_path_factory.mktemp("benchmark") / "memory.json"
    size = ["--width", "128", "--height", "64", "--frames", "121", "153", "--versions", "2.3"]
    size += ["--ways", "streamed", "untiled"]
    command = [
        sys.executable,
        str(BENCHMARK),
        *size,
        "--base",
        "16",
        "--heads",
        "4",
        "--json",
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(file.read_text()) | {"printed": done.stdout}


def test_every_measurement_is_printed_with_its_ratios(results):
    for frames in (121, 153):
        for way in ("streamed", "untiled"):
            assert results[f"2.3 {way} {frames}"]["frames"] == frames
            assert f"2.3 {way} {frames}" in results["printed"]
    for name, value in results["ratios"].items():
        assert f"{name}: {value:.2f}" in results["printed"]


def test_streamed_decode_does_not_grow_and_untiled_does(results):
    ratios = results["ratios"]
    # stacks of threads and small blocks of the heap weigh a few MiB at this size
    assert ratios["2.3: streamed, 153 over 121 frames"] < 1.15
    assert ratios["2.3: untiled over streamed, 153 frames"] > 1.5


def test_the_streamed_transformer_stays_within_its_budget(results):
    streamed, resident = (results[f"transformer {p}"] for p in ("streamed", "resident"))
    assert streamed["placed"] <= streamed["weights"] / 4
    assert results["ratios"]["transformer: streamed over weights"] < 0.35
    assert results["ratios"]["transformer: resident over weights"] > 0.95
    assert resident["weights"] == streamed["weights"]
