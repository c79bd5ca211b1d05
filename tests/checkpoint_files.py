"""Checkpoint files for tests: read whole, written in parts, or invented from names and shapes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path

import torch
from goldens import ROOT, Case
from safetensors import safe_open
from safetensors.torch import save_file

from aiprod_engine import Modality
from aiprod_engine.weights.containers.header import Header, TensorInfo
from aiprod_engine.weights.containers.safetensors_header import BITS

CHECKPOINTS = ROOT / "checkpoints"
MANIFESTS = ROOT.parent / "manifests"
P = "model.diffusion_model."


def checkpoint(name: str) -> Path:
    """Path of a fixture of the checkpoint area."""
    return CHECKPOINTS / name


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, dict(metadata or {}))
    return path


def header(
    tensors: Mapping[str, Sequence[int] | tuple[str, Sequence[int]]],
    metadata: Mapping[str, str] | None = None,
    name: str = "invented.safetensors",
) -> Header:
    """A header without a file; a tensor is its shape (BF16) or (dtype, shape)."""
    found, position = {}, 0
    for key, value in tensors.items():
        dtype, shape = value if value and isinstance(value[0], str) else ("BF16", value)
        size = prod(shape) * BITS[dtype] // 8
        found[key] = TensorInfo(dtype, tuple(shape), position, position + size)
        position += size
    return Header(Path(name), found, metadata or {}, "safetensors")


@cache
def manifest(name: str) -> dict[str, list[int]]:
    """Names and shapes of a full-size component."""
    return json.loads(gzip.decompress((MANIFESTS / f"{name}.json.gz").read_bytes()))


def table(name: str) -> dict:
    """A JSON fixture of the checkpoint area."""
    return json.loads(checkpoint(name).read_text())


def starting(tensors: Mapping, *starts: str, strip: str = "") -> dict:
    """Entries whose name starts with one of `starts`, without `strip`."""
    return {k.removeprefix(strip): v for k, v in tensors.items() if k.startswith(starts)}


def sides(case: Case) -> Iterable[Modality]:
    """Both inputs of the transformer case of a tiny checkpoint."""
    for side in ("video", "audio"):
        given = case.group(f"in.transformer.{side}.")
        given["tokens"] = given.pop("latent")
        yield Modality(**given)


def outputs(kind: str, model: torch.nn.Module, case: Case) -> dict[str, torch.Tensor]:
    """The network's answer to the inputs that the tiny checkpoint's `expected` file holds."""
    given = case.group(f"in.{kind}.")
    with torch.no_grad():
        if kind == "transformer":
            return dict(zip(("video", "audio"), model(*sides(case)), strict=True))
        if kind == "text_connector":
            answer = model(given["hidden_states"], given["attention_mask"])
            return dict(zip(("video", "audio", "mask"), answer, strict=True))
        (name,) = case.group(f"out.{kind}.")
        return {name: model(*given.values())}
