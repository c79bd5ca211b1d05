"""Reads the numeric fixtures of `tests/golden`: one safetensors file per case.

A test names the cases it uses as literal patterns, `golden("transformer/full_*")`, so that
`test_goldens.py` can tell which fixture no test uses.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

ROOT = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    """One fixture: `weights`, `inputs`, `outputs` by name, and its metadata."""

    name: str  # "<area>/<case>"

    @property
    def path(self) -> Path:
        return ROOT / f"{self.name}.safetensors"

    @cached_property
    def metadata(self) -> dict[str, str]:
        with safe_open(self.path, "pt") as file:
            return file.metadata() or {}

    @property
    def config(self) -> dict:
        return json.loads(self.metadata.get("config", "{}"))

    @property
    def call(self) -> dict:
        return json.loads(self.metadata.get("call", "{}"))

    @property
    def tolerance(self) -> dict:
        return json.loads(self.metadata.get("tolerance", "{}"))

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        with safe_open(self.path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors whose name starts with `prefix`, without it."""
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        return self.group("in.")

    @property
    def outputs(self) -> dict[str, torch.Tensor]:
        return self.group("out.")

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Checkpoint key -> tensor; cases may share the weights of another case of their area."""
        own = self.group("w.")
        if own or "weights_from" not in self.call:
            return own
        return Case(f"{self.name.rsplit('/', 1)[0]}/{self.call['weights_from']}").weights

    def bounds(self, output: str) -> tuple[float, float]:
        """(rtol, atol) that the fixture states for one output."""
        tolerance = self.tolerance
        for table in ("per_output_atol", "atol_by_output"):
            if output in tolerance.get(table, {}):
                return tolerance.get("rtol", 0.0), tolerance[table][output]
        prefixes = tolerance.get("atol_by_output_prefix", {})  # spelled with or without "out."
        matching = [p for p in prefixes if f"out.{output}".startswith(p) or output.startswith(p)]
        if matching:
            return tolerance.get("rtol", 0.0), prefixes[max(matching, key=len)]
        return tolerance.get("rtol", 0.0), tolerance.get("atol", 0.0)

    def check(self, output: str, actual: torch.Tensor) -> None:
        """Assert `|actual - expected| <= atol + rtol |expected|` with the fixture's own bounds."""
        expected = self.outputs[output]
        rtol, atol = self.bounds(output)
        torch.testing.assert_close(
            actual, expected.to(actual.dtype), rtol=rtol, atol=atol, msg=lambda m: f"{output}: {m}"
        )
        if "rel_rms" in self.tolerance:
            difference = (actual.double() - expected.double()).pow(2).mean().sqrt()
            assert difference <= self.tolerance["rel_rms"] * expected.double().pow(2).mean().sqrt()


def golden(*patterns: str) -> list:
    """Parameters for every fixture that matches `<area>/<case pattern>`."""
    found = []
    for pattern in patterns:
        area, _, name = pattern.partition("/")
        paths = sorted((ROOT / area).glob(f"{name}.safetensors"))
        assert paths, f"no fixture matches {pattern}"
        found += [pytest.param(Case(f"{area}/{p.stem}"), id=p.stem) for p in paths]
    return found
