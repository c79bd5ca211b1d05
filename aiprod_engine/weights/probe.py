"""A look at some values of every tensor: catches weights that no training can have produced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from math import isfinite, sqrt

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..errors import CheckpointError
from .containers.gguf_header import BLOCKS
from .containers.header import short
from .lora.adapters import tensors_of
from .lora.stack import LoraSet
from .quant.dequantize import dequantize
from .quant.linear import QuantizedLinear

# Values looked at per tensor: runs of neighbours, because every run may cost one disk access.
_RUNS, _RUN = 4, 256
_GGUF_BLOCKS = 4
# Block scales that are stored in tiles of 128 rows and 4 columns: bytes of weight under each.
_TILED = {"nvfp4": 8, "mxfp8": 32}
_TILE_ROWS, _TILE, _TILES = 128, 512, 4
# Standard deviation times sqrt(inputs) of a matrix. Published LTX-2 weights lie near 2 (0.035 at
# 4096 inputs), their fp8 codes without the scale near 1700 (26.9): the bound is the geometric
# middle. The lower one only catches what is zero but for rounding.
_LARGEST, _SMALLEST = 64.0, 1e-4
# Any value of a vector or table. Norms of Gemma 3 reach some hundred; random bytes read as bfloat16
# exceed it in four of ten values.
_LARGEST_VALUE = 1e6

_DAMAGED = "the file is damaged; fetch it again"
_UNSCALED = (
    "its quantisation scale is missing or was not applied; use a file that holds the scales, "
    "or the bfloat16 one"
)
_ALL_THE_SAME = "to use it all the same, switch check_values off where it is loaded"


@dataclass(frozen=True)
class Probe:
    """Some values (n,) float32 of one tensor; `inputs` of the layer whose matrix it is, else 0."""

    name: str
    values: Tensor
    inputs: int


def check_plausible(model: nn.Module, what: str = "the network") -> None:
    """Raise CheckpointError if a tensor of a loaded model cannot be that of a trained network.

    Reads a bounded number of values per tensor; one that looks wrong is read whole before it is
    refused. Not a test of quality: whatever a training can leave behind passes.
    """
    probes = list(_probes(model))
    for probe, largest, spread in zip(probes, *_statistics(probes), strict=True):
        if _verdict(probe, largest, spread) is None:
            continue
        whole = Probe(probe.name, _whole(model, probe.name), probe.inputs)
        (largest,), (spread,) = _statistics([whole])
        if why := _verdict(whole, largest, spread):
            raise CheckpointError(f"{what}: {short(probe.name)} {why}; {_ALL_THE_SAME}")


def check_adapters(loras: LoraSet) -> None:
    """Raise CheckpointError if some of the values of an adapter are no finite numbers."""
    probes = [
        Probe(key, _some(tensor), 0)
        for key, records in loras.records.items()
        for record in records
        for tensor in tensors_of(record.adapter)
    ]
    for probe, largest in zip(probes, _statistics(probes)[0], strict=True):
        if not isfinite(largest):
            files = ", ".join(report.file for report in loras.reports)
            raise CheckpointError(
                f"{files}: the adapter of {short(probe.name)} holds values that are no finite "
                f"numbers: {_DAMAGED}"
            )


def _verdict(probe: Probe, largest: float, spread: float) -> str | None:
    """What is wrong with a tensor, as the end of a sentence."""
    if not isfinite(largest):
        return f"holds values that are no finite numbers: {_DAMAGED}"
    if not probe.inputs:
        if largest <= _LARGEST_VALUE:
            return None
        return f"reaches {largest:.3g}, plausible is at most {_LARGEST_VALUE:.0e}: {_DAMAGED}"
    low, high = _SMALLEST / sqrt(probe.inputs), _LARGEST / sqrt(probe.inputs)
    if low <= spread <= high:
        return None
    found = "is zero everywhere" if largest == 0 else f"has a standard deviation of {spread:.3g}"
    span = f"{low:.1g} to {high:.2g} is plausible for {probe.inputs} inputs"
    return f"{found}, {span}: {_UNSCALED if spread > high else _DAMAGED}"


def _probes(model: nn.Module) -> Iterator[Probe]:
    seen: set[int] = set()
    for path, module in model.named_modules():
        start = f"{path}." if path else ""
        matrix = isinstance(module, nn.Linear | _ConvNd)
        if isinstance(module, QuantizedLinear):
            _check_layout(module, start)
            yield Probe(f"{start}weight", _some_decoded(module), module.in_features)
            seen.update(id(tensor) for tensor in module.packed().values())
        for name, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is None or id(tensor) in seen or not tensor.is_floating_point():
                continue
            seen.add(id(tensor))
            if tensor.numel():
                is_matrix = matrix and name == "weight" and tensor.numel() > 1
                inputs = tensor[0].numel() if is_matrix else 0
                yield Probe(f"{start}{name}", _some(tensor), inputs)


def _some(tensor: Tensor) -> Tensor:
    """Runs of values from the beginning to the end of `tensor`."""
    flat = tensor.detach().reshape(-1)
    if len(flat) > _RUNS * _RUN:
        step = (len(flat) - _RUN) // (_RUNS - 1)
        flat = flat.as_strided((_RUNS, _RUN), (step, 1), flat.storage_offset()).reshape(-1)
    return flat.float()


def _statistics(probes: Iterable[Probe]) -> tuple[list[float], list[float]]:
    """(largest magnitudes, standard deviations), fetched from the device at once."""
    largest = [probe.values.abs().max() for probe in probes]
    spread = [probe.values.std(correction=0) for probe in probes]
    if not largest:
        return [], []
    return torch.stack(largest).tolist(), torch.stack(spread).tolist()


def _whole(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, QuantizedLinear) and leaf == "weight":
        return module.dequantized().reshape(-1)
    return getattr(module, leaf).detach().reshape(-1).float()


def _some_decoded(linear: QuantizedLinear) -> Tensor:
    """Values of a row in the middle of a packed weight."""
    row = linear.out_features // 2 // _TILE_ROWS * _TILE_ROWS
    kind = linear.layer.name
    return dequantize(linear.layer, _row(kind, linear.packed(), row)).reshape(-1)


def _row(kind: str, packed: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    """The tensors of one row of a layer (at least its beginning), as if there were no other."""
    if kind.startswith("gguf:"):
        return {"weight": _gguf_blocks(kind.removeprefix("gguf:"), packed["weight"], row)}
    if kind in _TILED:
        return _tiled_row(kind, packed, row)
    tensors = dict(packed)
    for role in ("weight", "weight_s_rel", "weight_s_channel"):
        if role in tensors:
            tensors[role] = tensors[role][row : row + 1]
    if "weight_scale" in tensors and tensors["weight_scale"].numel() > 1:  # one per row
        tensors["weight_scale"] = tensors["weight_scale"].reshape(-1)[row : row + 1]
    return tensors


def _gguf_blocks(kind: str, weight: Tensor, row: int) -> Tensor:
    """Some whole blocks of a row; writers fold rows that are no multiple of a block into one."""
    size = BLOCKS[kind][1]
    raw = weight.reshape(-1)
    first = row * weight.shape[-1] if weight.ndim > 1 else 0
    return raw[first : first + _GGUF_BLOCKS * size].reshape(1, -1)


def _tiled_row(kind: str, packed: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    """The beginning of a row (multiple of 128) whose block scales lie in tiles of 128 rows."""
    weight = packed["weight"]
    scale = packed["weight_scale"].view(torch.uint8).reshape(-1)
    per_row = len(scale) // -(-len(weight) // _TILE_ROWS)
    tiles = min(_TILES, per_row // _TILE)
    part = scale[row // _TILE_ROWS * per_row :][: tiles * _TILE]
    columns = tiles * 4 * _TILED[kind]
    return {
        **packed,
        "weight": weight[row : row + 1, :columns],
        "weight_scale": part.view(packed["weight_scale"].dtype),
    }


def _check_layout(linear: QuantizedLinear, start: str) -> None:
    """Raise for scales that lie across: they would be read without any error, in a wrong order."""
    scale = linear.packed().get("weight_scale")
    if scale is None or scale.ndim != 2 or scale.numel() == 1:
        return
    tiled = linear.layer.name in _TILED
    rows = -(-linear.out_features // _TILE_ROWS) * _TILE_ROWS if tiled else linear.out_features
    if scale.shape[0] != rows:
        raise CheckpointError(
            f"{short(start + 'weight_scale')} has the shape {tuple(scale.shape)}, {rows} rows are "
            "needed: it was stored transposed; use a file of another publisher"
        )
