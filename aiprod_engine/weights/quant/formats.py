"""Which layers of a file are quantised, and how: read from records, names, dtypes and shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from types import MappingProxyType
from typing import Any

from ...errors import CheckpointError
from ..containers.header import Header, TensorInfo, short
from ..containers.read import read_bytes

FP8 = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
MAX_RECORD = 65_536  # bytes; published records have 30 to 100
MAX_JSON = 1_000_000
MAX_DEPTH = 16
_NATIVE_GGUF = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8"}

# role -> spellings of its tensor; the second one is the older ComfyUI layout.
ROLES = {
    "weight": ("weight",),
    "weight_scale": ("weight_scale", "scale_weight"),
    "weight_scale_2": ("weight_scale_2",),
    "input_scale": ("input_scale", "scale_input"),
    "weight_codebook": ("weight_codebook",),
    "weight_s_rel": ("weight_s_rel",),
    "weight_s_channel": ("weight_s_channel",),
}
COMPANIONS = {name for role, names in ROLES.items() if role != "weight" for name in names}
COMPANIONS.add("comfy_quant")
_ANY_RANK = (*FP8, "fp8_cast")  # convolutions too
MARKER = "scaled_fp8"  # legacy, `<prefix>scaled_fp8`

# Formats and what `summary` calls them.
SUMMARY = {
    "float8_e4m3fn": "fp8_scaled",
    "float8_e5m2": "fp8_scaled",
    "fp8_cast": "fp8_cast",
    "nvfp4": "nvfp4",
    "mxfp8": "mxfp8",
    "int8_tensorwise": "int8",
    "asym_w4a8_int8": "w4a8",
}


@dataclass(frozen=True)
class LayerFormat:
    """How one layer is stored; `tensors` maps role to file key, `group` sizes are in inputs.

    `name` is one of float8_e4m3fn, float8_e5m2 (with a scale), fp8_cast, nvfp4, mxfp8,
    int8_tensorwise, asym_w4a8_int8 or gguf:<ggml type>.
    """

    name: str
    convrot_group: int | None = None
    group: int | None = None
    full_precision: bool = False
    tensors: Mapping[str, str] = field(default_factory=dict)


@lru_cache(maxsize=64)
def layer_formats(file: Header) -> Mapping[str, LayerFormat]:
    """Format of every quantised layer by layer path as written in the file (with its prefix)."""
    if file.container == "gguf":
        return MappingProxyType(dict(_gguf_layers(file)))
    try:
        return MappingProxyType(_judged(file))
    except CheckpointError as error:
        raise CheckpointError(f"{file.path.name}: {error}") from None


def logical_shapes(file: Header, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Shapes by name (name -> file key) of the weights that the stored tensors stand for.

    4-bit rows hold two inputs a byte; the scales beside a weight are left out.
    """
    halved = {
        layer.tensors["weight"]
        for layer in layer_formats(file).values()
        if layer.name in ("nvfp4", "asym_w4a8_int8")
    }
    shapes = {}
    for name, key in names.items():
        if not is_companion(key):
            shape = file.tensors[key].shape
            shapes[name] = (*shape[:-1], shape[-1] * 2) if key in halved else shape
    return shapes


def is_companion(key: str) -> bool:
    """Whether a key belongs to the quantisation of a layer rather than to the network."""
    last = key.rpartition(".")[2]
    return last in COMPANIONS or last == MARKER


def _judged(file: Header) -> dict[str, LayerFormat]:
    records = _records(file)
    scaled = any(_is_scale(name) for name in file.tensors)
    markers = {n[: -len(MARKER)]: i for n, i in file.tensors.items() if _is_marker(n)}
    formats = {}
    for layer in _candidates(file, records):
        judge = _Layer(file, layer)
        record = records.get(layer)
        found = judge.recorded(record) if record is not None else judge.by_tensors(scaled, markers)
        if found is not None:
            formats[layer] = found
    return formats


def summary(formats: Mapping[str, LayerFormat], container: str = "safetensors") -> str:
    """The one-word quantisation of a file: none, a format, or mixed."""
    if container == "gguf":
        return "gguf"
    words = {_word(found) for found in formats.values()}
    return "none" if not words else words.pop() if len(words) == 1 else "mixed"


def parse_json(text: str | bytes, what: str, limit: int = MAX_JSON) -> Any:
    """JSON from a file, bounded in size and depth."""
    if len(text) > limit:
        raise CheckpointError(f"{what} has {len(text)} characters; at most {limit}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{what} is not valid JSON") from None
    if _depth(value) > MAX_DEPTH:
        raise CheckpointError(f"{what} is nested deeper than {MAX_DEPTH} levels")
    return value


def _word(found: LayerFormat) -> str:
    if found.name == "int8_tensorwise" and found.convrot_group:
        return "int8_convrot"
    return SUMMARY[found.name]


def _depth(value: Any, level: int = 1) -> int:
    if level > MAX_DEPTH or not isinstance(value, dict | list):
        return level
    children = value.values() if isinstance(value, dict) else value
    return max((_depth(child, level + 1) for child in children), default=level)


def _gguf_layers(file: Header) -> Iterator[tuple[str, LayerFormat]]:
    for name, info in file.tensors.items():
        if info.dtype not in _NATIVE_GGUF:
            layer = name.removesuffix(".weight")
            yield layer, LayerFormat(f"gguf:{info.dtype}", tensors={"weight": name})


def _records(file: Header) -> dict[str, dict]:
    """Layer path -> record, from the metadata and from `.comfy_quant` payloads."""
    records = {}
    if (text := file.metadata.get("_quantization_metadata")) is not None:
        value = parse_json(text, "_quantization_metadata")
        layers = value.get("layers", {}) if isinstance(value, dict) else None
        if not isinstance(layers, dict):
            raise CheckpointError("_quantization_metadata has no object `layers`")
        records.update(layers)
    for name, info in file.tensors.items():
        if name.endswith(".comfy_quant"):
            if info.end - info.start > MAX_RECORD:
                raise CheckpointError(f"{short(name)} is too large for a layer record")
            payload = read_bytes(file, name)
            records[name.removesuffix(".comfy_quant")] = parse_json(payload, short(name))
    for layer, record in records.items():
        if not isinstance(record, dict):
            raise CheckpointError(f"the quantisation record of {short(layer)} is no JSON object")
    return records


def _candidates(file: Header, records: Mapping[str, dict]) -> Iterator[str]:
    """Layers that may be quantised: an 8-bit matrix, a stray companion, or a record."""
    seen = set()
    for name, info in file.tensors.items():
        layer, _, last = name.rpartition(".")
        eight_bits = info.dtype in ("F8_E4M3", "F8_E5M2", "I8", "U8")
        is_matrix = last == "weight" and eight_bits and len(info.shape) >= 2
        if (is_matrix or last in COMPANIONS) and layer not in seen:
            seen.add(layer)
            yield layer
    for layer in records:
        if layer not in seen and f"{layer}.weight" in file.tensors:
            yield layer


def _is_scale(name: str) -> bool:
    return name.rpartition(".")[2] in ROLES["weight_scale"]


def _is_marker(name: str) -> bool:
    return name == MARKER or name.endswith("." + MARKER)


class _Layer:
    """The tensors of one layer and the rules that name its format."""

    def __init__(self, file: Header, layer: str):
        self.layer = layer
        self.keys = {
            role: key
            for role, names in ROLES.items()
            for name in names
            if (key := f"{layer}.{name}" if layer else name) in file.tensors
        }
        self.infos = {role: file.tensors[key] for role, key in self.keys.items()}

    def bad(self, why: str) -> CheckpointError:
        return CheckpointError(f"quantised layer {short(self.layer)} {why}")

    def dtype(self, role: str) -> str | None:
        return self.infos[role].dtype if role in self.infos else None

    def recorded(self, record: dict) -> LayerFormat:
        """Format named by the layer's record; its tensors must agree."""
        name = record.get("format")
        if not isinstance(name, str) or name not in SUMMARY or name == "fp8_cast":
            known = ", ".join(key for key in SUMMARY if key != "fp8_cast")
            raise self.bad(f"has the unknown format {short(name)}; known: {known}")
        rotation = None
        if record.get("convrot") or name == "asym_w4a8_int8":
            rotation = self._size(record, "convrot_groupsize")
            if rotation is None and record.get("convrot"):
                raise self.bad("is rotated (convrot) but names no convrot_groupsize")
        group = self._size(record, "group_size")
        if name == "asym_w4a8_int8" and group is None:
            group = 16  # the only published size
        full = record.get("full_precision_matrix_mult", False) is True
        return self._checked(name, convrot_group=rotation, group=group, full_precision=full)

    def by_tensors(self, scaled: bool, markers: Mapping[str, TensorInfo]) -> LayerFormat | None:
        """Format shown by names and dtypes alone; None for a layer that is not quantised."""
        weight, scale = self.dtype("weight"), self.dtype("weight_scale")
        if weight == "U8":
            return self._checked("nvfp4")
        if weight in ("F8_E4M3", "F8_E5M2"):
            if scale in ("U8", "F8_E8M0"):
                return self._checked("mxfp8")
            if scale is not None:
                marker = next((i for p, i in markers.items() if self.layer.startswith(p)), None)
                # The older layout announces "always in full precision" by a marker of two elements.
                full = marker is not None and prod(marker.shape) == 2
                return self._checked(
                    "float8_e4m3fn" if weight == "F8_E4M3" else "float8_e5m2", full_precision=full
                )
            if scaled or markers:
                raise self.bad("has no scale tensor although other layers of the file have one")
            return self._checked("fp8_cast")
        if weight == "I8":
            raise self.bad("is int8 without a format record: its rotation is unknown")
        if scale is not None or "weight_scale_2" in self.infos:
            raise self.bad(f"has a scale but its weight is {weight or 'missing'}")
        return None

    def _size(self, record: dict, key: str) -> int | None:
        value = record.get(key)
        if value is None:
            return None
        if type(value) is not int or not 1 <= value <= 65536:
            raise self.bad(f"has {key} {short(value)}; an integer in 1..65536 is needed")
        return value

    def _checked(self, name: str, **options: Any) -> LayerFormat:
        self._check_tensors(name)
        if rotation := options.get("convrot_group"):
            columns = self._columns(name)
            if rotation & (rotation - 1) or rotation.bit_length() % 2 == 0 or columns % rotation:
                raise self.bad(
                    f"is rotated in groups of {rotation}: a power of 4 that divides "
                    f"{columns} inputs is needed"
                )
        return LayerFormat(name, tensors=dict(self.keys), **options)

    def _columns(self, name: str) -> int:
        columns = self.infos["weight"].shape[-1]
        return columns * 2 if name in ("nvfp4", "asym_w4a8_int8") else columns

    def _check_tensors(self, name: str) -> None:
        """Every needed tensor is there, with the dtype and shape of the layout."""
        if "weight" not in self.infos:
            raise self.bad("has no weight tensor")
        shape = self.infos["weight"].shape
        if len(shape) < 2 or (len(shape) > 2 and name not in _ANY_RANK):
            raise self.bad(f"has a weight of shape {shape}; {name} needs rows and columns")
        rows, columns = self.infos["weight"].shape[0], self._columns(name)
        padded = -(-rows // 128) * 128
        if name in FP8:
            self._need("weight", (FP8[name],))
            self._need("weight_scale", ("F32",), (1,))
        elif name == "fp8_cast":
            self._need("weight", tuple(FP8.values()))
        elif name == "nvfp4":
            self._need("weight", ("U8",))
            self._need("weight_scale", ("F8_E4M3",), (padded * (-(-columns // 64) * 4),))
            self._need("weight_scale_2", ("F32",), (1,))
        elif name == "mxfp8":
            self._need("weight", ("F8_E4M3",))
            blocks = -(-columns // 128) * 4  # one scale per 32 inputs, padded to four
            self._need("weight_scale", ("U8", "F8_E8M0"), (padded * blocks,))
        elif name == "int8_tensorwise":
            self._need("weight", ("I8",))
            self._need("weight_scale", ("F32",), (1, rows))
        elif name == "asym_w4a8_int8":
            self._need("weight", ("I8", "U8"))
            self._need("weight_codebook", ("F32",), (16,))
            self._need("weight_s_rel", ("F8_E4M3",))
            self._need("weight_s_channel", ("F32",), (rows,))

    def _need(self, role: str, dtypes: tuple[str, ...], sizes: tuple[int, ...] = ()) -> None:
        info = self.infos.get(role)
        if info is None:
            raise self.bad(f"has no {role} tensor; a quantised weight needs its scales")
        if info.dtype not in dtypes:
            raise self.bad(f"stores {role} as {info.dtype}; expected {' or '.join(dtypes)}")
        if sizes and prod(info.shape) not in sizes:
            raise self.bad(f"has a {role} of shape {info.shape}; expected {sizes} elements")
