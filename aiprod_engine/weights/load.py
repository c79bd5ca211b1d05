"""From files to a network: headers, configuration, meta construction, strict assignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .components import COMPONENTS, Component
from .dequantize import dequantize
from .files import Files
from .header import short
from .keymap import is_companion
from .lora import LoraSet, load_loras
from .mapped import MappedFile
from .quant import QuantizedLinear, convert
from .side_path import attach
from .source import Source, find, untrusted

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_LISTED = 3  # names that an error message shows


def configuration(kind: str, files: Files, modalities: str | None = None) -> object:
    """Configuration of the network that `load` would build; reads headers only."""
    return _configured(find(kind, files), modalities)


def _configured(source: Source, modalities: str | None) -> object:
    with untrusted(source.info.name, source.kind):
        return COMPONENTS[source.kind].configure(source, modalities)


def load(
    kind: str,
    files: Files,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
    modalities: str | None = None,
) -> nn.Module:
    """The network `kind` of `files` in eval mode on `device`; raises unless it is exactly there.

    `files` is one path, several, or a folder. `dtype` None keeps what is stored (GGUF: bfloat16);
    quantised layers stay packed in any case, and a vocoder is always float32. `modalities` "video"
    or "audio" builds that stream of the transformer alone. On the CPU unconverted tensors are
    views of the mapped file.
    """
    source = find(kind, files)
    component = COMPONENTS[kind]
    config = _configured(source, modalities)
    with torch.device("meta"):
        model = component.build(config)
    names = _matched(model, source, modalities)
    adapters = load_loras(loras, {name: t.shape for name, t in model.state_dict().items()})
    packed = _packed_layers(model, source, component)
    convert(model, packed)
    target = _Target(torch.device(device), torch.float32 if component.float32 else dtype)
    _assign(model, source, _Reader(source, target, adapters), names)
    if quantised := adapters.modules & packed.keys():
        attach(model, adapters, _compute_dtype(model, target), quantised)
    return model.eval().requires_grad_(False)


def _matched(model: nn.Module, source: Source, modalities: str | None) -> list[str]:
    """Names to read; raises if a tensor is missing, unexpected or of another shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name for name in source.tensors if not _belongs_to_layer(name, source)}
    if missing := sorted(expected.keys() - found):
        raise CheckpointError(_sentence(source, "lacks", missing))
    extra = found - expected.keys() - _other_streams(source, modalities)
    if extra:
        raise CheckpointError(_sentence(source, "holds unexpected", sorted(extra)))
    for name, shape in expected.items():
        if not _fits(source.shape(name), shape, source):
            raise CheckpointError(
                f"{source.info.name}: {short(name)} of {source.kind} has the shape "
                f"{source.shape(name)}, the configuration asks for {shape}"
            )
    return list(expected)


def _sentence(source: Source, verb: str, names: list[str]) -> str:
    listed = ", ".join(short(name) for name in names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (
        f"{source.info.name}: {source.kind} {verb} {len(names)} tensors: {listed}{more}; "
        "the file is incomplete, or its parts come from different versions"
    )


def _belongs_to_layer(name: str, source: Source) -> bool:
    """Whether a tensor is part of how a quantised layer is stored, not of the network."""
    return is_companion(name) and (
        name.rpartition(".")[0] in source.formats or name.rpartition(".")[2] == "scaled_fp8"
    )


def _other_streams(source: Source, modalities: str | None) -> set[str]:
    """Names of the transformer that a single-stream build leaves in the file."""
    if source.kind != "transformer" or modalities in (None, "av", source.info.modalities):
        return set()
    with torch.device("meta"):
        return set(COMPONENTS["transformer"].build(_configured(source, "av")).state_dict())


def _fits(stored: tuple[int, ...], shape: tuple[int, ...], source: Source) -> bool:
    """GGUF writers drop leading axes of one: [D] stands for [1, D]."""
    if stored == shape:
        return True
    folded = len(stored) < len(shape) and (1,) * (len(shape) - len(stored)) + stored == shape
    return folded and any(header.container == "gguf" for header, _ in source.tensors.values())


def _packed_layers(model: nn.Module, source: Source, component: Component) -> dict:
    """Formats of the linears that stay as they are stored."""
    return {
        name: found
        for name, found in source.formats.items()
        if f"{name}.weight" in source.tensors
        and not name.startswith(component.plain or "\0")
        and isinstance(_submodule(model, name), nn.Linear)
    }


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:  # of a stream that is not built, or a bare parameter
        return None


@dataclass(frozen=True)
class _Target:
    """Where tensors go and what dtype floating ones get; None keeps theirs."""

    device: torch.device
    dtype: torch.dtype | None


class _Reader:
    """Turns stored tensors into parameters, one at a time."""

    def __init__(self, source: Source, target: _Target, adapters: LoraSet):
        self.source, self.target, self.adapters = source, target, adapters
        headers = {id(header): header for header, _ in source.tensors.values()}
        self.files = {key: MappedFile(header) for key, header in headers.items()}
        # llama.cpp stores Gemma's norms with the 1 that the network adds already in them.
        self.shifted_norms = source.info.layout == "llama.cpp"

    def raw(self, name: str) -> Tensor:
        """The stored tensor on the target device."""
        header, key = self.source.tensors[name]
        return self.files[id(header)].tensor(key).to(self.target.device)

    def parameter(self, name: str, shape: torch.Size) -> Tensor:
        """A tensor of the network: decoded where it is packed, cast, with its adapters fused."""
        layer = self.source.format_of(name)
        x = self.raw(name) if layer is None else self._decoded(name, layer)
        if self.shifted_norms and name.endswith("norm.weight"):
            x = x.float() - 1
        if not x.is_floating_point():
            raise CheckpointError(
                f"{self.source.info.name}: {short(name)} is stored as {x.dtype}, "
                "which needs a quantisation record"
            )
        dtype = self.target.dtype or self._natural(name, x, packed=layer is not None)
        # Fused in the wider of both dtypes, so that the sum is rounded once.
        if name in self.adapters.keys:
            x = self.adapters.fuse(name, x.to(torch.promote_types(_wide(x.dtype), dtype)))
        return x.to(dtype).reshape(shape)

    def _decoded(self, name: str, layer) -> Tensor:
        base = name.removesuffix(".weight")
        roles = {role: key.rpartition(".")[2] for role, key in layer.tensors.items()}
        tensors = {
            role: self.raw(name if role == "weight" else f"{base}.{last}")
            for role, last in roles.items()
        }
        values = dequantize(layer, tensors)
        return values.reshape(self.source.shape(name))

    def _natural(self, name: str, x: Tensor, packed: bool) -> torch.dtype:
        """Dtype when none is asked for: bfloat16 replaces packed and fp8 values and, in GGUF,
        the mixture of float types that its writers leave around packed layers."""
        header, _ = self.source.tensors[name]
        mixed = header.container == "gguf" and "scale_shift_table" not in name
        return torch.bfloat16 if packed or mixed or x.dtype in _FP8 else x.dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _FP8 else dtype


def _assign(model: nn.Module, source: Source, reader: _Reader, names: list[str]) -> None:
    """Fill the model from the files; nothing may be left without data."""
    linears = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    state: dict[str, Tensor] = {}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in names:
        layer = linears.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if layer is None:
            state[name] = reader.parameter(name, shapes[name])
            continue
        for role, last in layer.names.items():
            key = f"{name.removesuffix('.weight')}.{last}"
            x = reader.raw(key)
            state[key] = x.reshape(shapes[key]) if role == "weight" else x
    model.load_state_dict(state, strict=True, assign=True)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if left := [name for name, tensor in tensors if tensor.is_meta]:
        raise CheckpointError(_sentence(source, "was left without data for", left))


def _compute_dtype(model: nn.Module, target: _Target) -> torch.dtype:
    """Dtype in which a model with packed layers computes: asked for, or that of its parameters."""
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    return target.dtype or next((d for d in floats if d not in _FP8), torch.bfloat16)
