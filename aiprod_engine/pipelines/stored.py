"""Device bytes of a network's weights with its adapters, from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod

import torch
from torch import Tensor

from ..memory.home import ALIGNMENT
from ..memory.plan import Weights
from ..models.text.decoder import TextDecoder
from ..models.transformer import Transformer
from ..weights import configuration
from ..weights.components import COMPONENTS
from ..weights.lora.adapters import Adapter, with_tensors
from ..weights.lora.stack import load_loras
from ..weights.meta import on_meta
from ..weights.quant.fp8 import is_storage_target
from ..weights.quant.precision import BFLOAT16, FP8_STORAGE
from ..weights.recipe import Recipe
from ..weights.source import Stored, find

_BLOCKS = {"transformer": Transformer.streamable, "text_encoder": TextDecoder.streamable}
_STAYS_HOME = {"text_encoder": TextDecoder.stays_home}


def stored_weights(recipe: Recipe) -> Weights:
    """Device bytes of a network, block by block where it may stream.

    Low-rank factors that run beside a weight lie with it; those that are fused travel with a block
    that streams, and are gone where it stays.
    """
    tensors = _tensors(recipe)
    beside, fused = _adapter_bytes(recipe, tensors)
    prefix = f"{_BLOCKS[recipe.kind]}." if recipe.kind in _BLOCKS else None
    held, travelling = Counter(), Counter()
    for name, tensor in tensors.items():
        size = _device_bytes(recipe, name, tensor) + beside[name]
        index = None
        if prefix and name.startswith(prefix):
            index = int(name[len(prefix) :].partition(".")[0])
        held[index] += size
        travelling[index] += size + fused[name]
    outside = held.pop(None, 0)
    order = sorted(held)
    sizes, loads = ([of[index] for index in order] for of in (held, travelling))
    return Weights(outside, tuple(sizes), recipe.residency, tuple(loads))


def _tensors(recipe: Recipe) -> dict[str, Stored]:
    """What is loaded and moves: no table that stays home, no stream that is not built."""
    tensors = find(recipe.kind, recipe.files).tensors
    home = tuple(f"{name}." for name in _STAYS_HOME.get(recipe.kind, ()))
    built = None
    if recipe.modalities is not None:
        with on_meta():
            built = COMPONENTS[recipe.kind].build(config_of(recipe)).state_dict().keys()

    def is_there(name: str, tensor: Stored) -> bool:
        if home and name.startswith(home):
            return False
        if built is None or name in built:
            return True
        return tensor.shape is None and f"{name.rpartition('.')[0]}.weight" in built

    return {name: tensor for name, tensor in tensors.items() if is_there(name, tensor)}


def _device_bytes(recipe: Recipe, name: str, tensor: Stored) -> int:
    """Packed tensors as they lie in the file, the others in the dtype that they are loaded in."""
    info = tensor.header.tensors[tensor.key]
    if tensor.shape is None:
        return 0 if recipe.precision == BFLOAT16 else info.end - info.start
    if _is_packed(recipe, name, tensor):
        return prod(tensor.shape) if tensor.format is None else info.end - info.start
    dtype = torch.float32 if COMPONENTS[recipe.kind].float32 else recipe.dtype
    return info.end - info.start if dtype is None else prod(tensor.shape) * dtype.itemsize


def _is_packed(recipe: Recipe, name: str, tensor: Stored) -> bool:
    """Whether a weight lies on the device in fewer bits than it computes in."""
    if recipe.precision == FP8_STORAGE and is_storage_target(name.removesuffix(".weight")):
        return True
    is_plain = name.startswith(COMPONENTS[recipe.kind].plain or "\0")
    return tensor.format is not None and not is_plain and recipe.precision != BFLOAT16


def _adapter_bytes(recipe: Recipe, tensors: Mapping[str, Stored]) -> tuple[Counter, Counter]:
    """Bytes by tensor name: of factors beside a weight, and of what is fused into one."""
    beside, fused = Counter(), Counter()
    if not recipe.loras:
        return beside, fused
    packed = {
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if _is_packed(recipe, name, tensor)
    }
    shapes = {name: tensor.shape for name, tensor in tensors.items() if tensor.shape is not None}
    files = [(u.path, {"video": u.video, "audio": u.audio}, u.beside) for u in recipe.loras]
    into, next_to = load_loras(files, shapes).split(packed)
    for name, records in next_to.records.items():
        beside[name] = _factor_bytes((r.adapter for r in records), itemsize_of(recipe))
    for name, records in into.records.items():
        fused[name] = sum(_tensor_bytes(record.adapter) for record in records)
    return beside, fused


def _factor_bytes(adapters: Iterable[Adapter], itemsize: int) -> int:
    """Both factors of all adapters of a weight, along one rank."""
    rank = width = 0
    for adapter in adapters:
        width = sum(adapter.shape)
        rank += min(adapter.shape) if adapter.rank is None else adapter.rank
    return rank * width * itemsize


def _tensor_bytes(adapter: Adapter) -> int:
    """The tensors of an adapter as they are stored."""
    sizes: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        sizes.append(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT)
        return tensor

    with_tensors(adapter, count)
    return sum(sizes)


def rebuilt_bytes(recipe: Recipe) -> int:
    """What the largest packed layer takes while it is used: decoded twice in float32, then cast."""
    shapes = (
        tensor.shape
        for name, tensor in _tensors(recipe).items()
        if tensor.shape is not None and _is_packed(recipe, name, tensor)
    )
    return max(map(prod, shapes), default=0) * (4 + 4 + itemsize_of(recipe))


def itemsize_of(recipe: Recipe) -> int:
    """Bytes of an activation."""
    return (recipe.dtype or torch.bfloat16).itemsize  # Gemma keeps what is stored, bfloat16


def config_of(recipe: Recipe) -> object:
    """Configuration of the network."""
    modalities = recipe.modalities if recipe.kind == "transformer" else None
    return configuration(recipe.kind, recipe.files, modalities)
