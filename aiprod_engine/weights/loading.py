"""From files to a network: headers, configuration, meta construction, strict assignment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from ..errors import CheckpointError
from .components import COMPONENTS, Component
from .configure import untrusted
from .containers.header import short
from .files import Files
from .lora.side_path import attach
from .lora.stack import Lora, load_loras
from .meta import on_meta
from .quant.formats import MARKER, LayerFormat
from .quant.fp8 import storage_formats
from .quant.linear import QuantizedLinear, convert, linear_names, store_in_fp8
from .quant.precision import BFLOAT16, FP8_MATMUL, FP8_STORAGE, STORED
from .reader import Reader
from .source import Source, Stored, find

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
    loras: Sequence[Lora] = (),
    modalities: str | None = None,
    precision: str = STORED,
) -> nn.Module:
    """The network `kind` of `files` in eval mode on `device`; raises unless it is exactly there.

    `files` is one path, several, or a folder. `dtype` None keeps what is stored (GGUF: bfloat16);
    quantised layers stay packed unless `precision` is bfloat16, and a vocoder is always float32.
    `precision` also turns a transformer into fp8 storage, or lets it multiply in fp8. `modalities`
    "video" or "audio" builds that stream of the transformer alone. On the CPU unconverted tensors
    are views of the mapped file.
    """
    source = find(kind, files)
    component = COMPONENTS[kind]
    config = _configured(source, modalities)
    with on_meta():
        model = component.build(config)
    shapes = _matched(model, source, modalities)
    adapters = load_loras(loras, shapes)
    packed = {} if precision == BFLOAT16 else _packed_layers(model, source, component)
    convert(model, packed, scaled_matmul=precision == FP8_MATMUL)
    cast = storage_formats(linear_names(model)) if precision == FP8_STORAGE else {}
    fused, beside = adapters.split(packed.keys() | cast.keys())
    dtype = torch.float32 if component.float32 else dtype
    _assign(model, Reader(source, torch.device(device), dtype, fused), shapes)
    if cast:
        store_in_fp8(model)
    if beside.keys:
        attach(model, beside, compute_dtype(model, dtype))
    return model.eval().requires_grad_(False)


def _matched(model: nn.Module, source: Source, modalities: str | None) -> dict[str, tuple]:
    """Names to read and their shapes; raises if one is missing, unexpected or of another shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layers = source.formats
    found = {name for name, t in source.tensors.items() if not _is_known_companion(name, t, layers)}
    if missing := sorted(expected.keys() - found):
        raise CheckpointError(_sentence(source, "lacks", missing))
    if extra := sorted(found - expected.keys() - _other_streams(source, modalities)):
        raise CheckpointError(_sentence(source, "holds unexpected", extra))
    for name, shape in expected.items():
        stored = source.tensors[name]
        if not _fits(stored, shape):
            raise CheckpointError(
                f"{source.info.name}: {short(name)} of {source.kind} has the shape "
                f"{stored.shape}, the configuration asks for {shape}"
            )
    return expected


def _sentence(source: Source, verb: str, names: list[str]) -> str:
    listed = ", ".join(short(name) for name in names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (
        f"{source.info.name}: {source.kind} {verb} {len(names)} tensors: {listed}{more}; "
        "the file is incomplete, or its parts come from different versions"
    )


def _is_known_companion(name: str, stored: Stored, layers: Mapping[str, LayerFormat]) -> bool:
    """Whether a tensor only tells how another one is stored: scales, records, the old marker."""
    layer, _, last = name.rpartition(".")
    return stored.shape is None and (layer in layers or last == MARKER)


def _other_streams(source: Source, modalities: str | None) -> set[str]:
    """Names of the transformer that a single-stream build leaves in the file."""
    if source.kind != "transformer" or modalities in (None, "av", source.info.modalities):
        return set()
    with on_meta():
        return set(COMPONENTS["transformer"].build(_configured(source, "av")).state_dict())


def _fits(stored: Stored, shape: tuple[int, ...]) -> bool:
    """GGUF writers drop leading axes of one: [D] stands for [1, D]."""
    if stored.shape == shape:
        return True
    missing = len(shape) - len(stored.shape)
    is_folded = missing > 0 and (1,) * missing + stored.shape == shape
    return is_folded and stored.header.container == "gguf"


def _packed_layers(
    model: nn.Module, source: Source, component: Component
) -> dict[str, LayerFormat]:
    """Formats of the linears that stay as they are stored."""
    return {
        name: found
        for name, found in source.formats.items()
        if not any(name.startswith(start) for start in component.plain)
        and isinstance(_submodule(model, name), nn.Linear)
    }


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:  # of a stream that is not built, or a bare parameter
        return None


def _assign(model: nn.Module, reader: Reader, names: Iterable[str]) -> None:
    """Fill the model from the files; nothing may be left without data."""
    modules = dict(model.named_modules())
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = modules[path]
        shape = getattr(owner, leaf).shape  # GGUF folds leading axes of one
        if isinstance(owner, QuantizedLinear) and leaf == "weight":
            packed = reader.packed(name)
            packed[name] = packed[name].reshape(shape)
            for key, tensor in packed.items():
                setattr(owner, key.rpartition(".")[2], tensor)
        else:
            tensor = reader.parameter(name).reshape(shape)
            is_buffer = leaf in owner._buffers
            setattr(owner, leaf, tensor if is_buffer else nn.Parameter(tensor, False))
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if left := [name for name, tensor in tensors if tensor.is_meta]:
        raise CheckpointError(_sentence(reader.source, "was left without data for", left))


def compute_dtype(model: nn.Module, dtype: torch.dtype | None) -> torch.dtype:
    """Dtype in which a model with packed layers computes: asked for, or that of most parameters.

    Not that of the first: it may be a table, which some releases store in float32.
    """
    counts: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize > 1:
            counts[parameter.dtype] += parameter.numel()
    return dtype or max(counts, key=counts.get, default=torch.bfloat16)
