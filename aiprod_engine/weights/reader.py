"""Stored tensors to what a network holds: mapped, moved, decoded, cast, adapted; one at a time."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from ..errors import CheckpointError
from .containers.header import short
from .containers.mapped import DTYPES, MappedFile
from .lora.stack import LoraSet
from .quant.dequantize import dequantize
from .source import Source, Stored

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class Reader:
    """Reads the tensors of one network for `device`; `dtype` None keeps what is stored."""

    def __init__(
        self,
        source: Source,
        device: torch.device,
        dtype: torch.dtype | None = None,
        adapters: LoraSet | None = None,
    ):
        self.source, self.device, self.dtype = source, device, dtype
        self.adapters = LoraSet({}) if adapters is None else adapters
        headers = {id(stored.header): stored.header for stored in source.tensors.values()}
        self._files = {key: MappedFile(header) for key, header in headers.items()}

    def on(self, device: torch.device, adapters: LoraSet) -> Reader:
        """A reader of the same open files for another device, with other adapters."""
        other = copy(self)
        other.device, other.adapters = device, adapters
        return other

    def raw(self, name: str) -> Tensor:
        """The stored tensor, moved as the bytes it is."""
        stored = self.source.tensors[name]
        return self._files[id(stored.header)].tensor(stored.key).to(self.device)

    def packed(self, name: str) -> dict[str, Tensor]:
        """The tensors of a quantised layer by name; `name` is that of its weight."""
        layer = name.removesuffix(".weight")
        keys = self.source.tensors[name].format.tensors
        names = (
            name if role == "weight" else f"{layer}.{key.rpartition('.')[2]}"
            for role, key in keys.items()
        )
        return {n: self.raw(n) for n in names}

    def parameter(self, name: str) -> Tensor:
        """A tensor of the network: decoded where it is packed, cast, with its adapters fused."""
        stored = self.source.tensors[name]
        x = self._values(name, stored)
        dtype = self.dtype or _natural(name, x.dtype, stored)
        if name in self.adapters.keys:
            # In the wider of both dtypes, so that the sum is rounded once.
            wide = torch.float32 if x.dtype in _FP8 else torch.promote_types(x.dtype, dtype)
            x = self.adapters.fuse(name, x.to(wide))
        return x.to(dtype)

    def is_exact(self, name: str) -> bool:
        """Whether a network holds what is stored of a tensor, not something rounded from it."""
        stored = self.source.tensors[name]
        if stored.format is not None or self._is_shifted(name):
            return False
        found = DTYPES[stored.header.tensors[stored.key].dtype]
        dtype = self.dtype or _natural(name, found, stored)
        return found not in _FP8 and torch.promote_types(found, dtype) == dtype

    def is_view(self, name: str, tensor: Tensor) -> bool:
        """Whether `tensor`, which a network holds on the CPU, is one of the mapped file."""
        stored = self.source.tensors[name]
        info = stored.header.tensors[stored.key]
        is_same = DTYPES.get(info.dtype, torch.uint8) == tensor.dtype
        is_aligned = info.start % tensor.itemsize == 0
        return is_same and is_aligned and info.end - info.start == tensor.nbytes

    def _is_shifted(self, name: str) -> bool:
        """llama.cpp stores Gemma's norms with the 1 that the network adds already in them."""
        return self.source.info.layout == "llama.cpp" and name.endswith("norm.weight")

    def _values(self, name: str, stored: Stored) -> Tensor:
        if stored.format is None:
            x = self.raw(name)
        else:
            roles = zip(stored.format.tensors, self.packed(name).values(), strict=True)
            x = dequantize(stored.format, dict(roles)).reshape(stored.shape)
        if not x.is_floating_point():
            raise CheckpointError(
                f"{stored.header.path.name}: {short(name)} is stored as {x.dtype}, "
                "which means nothing without a quantisation record"
            )
        return x.float() - 1 if self._is_shifted(name) else x


def _natural(name: str, found: torch.dtype, stored: Stored) -> torch.dtype:
    """Dtype when none is asked for.

    bfloat16 replaces decoded and fp8 values and, in GGUF, the mixture of float types that its
    writers leave around packed layers (all but the modulation tables).
    """
    is_mixed = stored.header.container == "gguf" and "scale_shift_table" not in name
    is_coded = stored.format is not None or found in _FP8
    return torch.bfloat16 if is_mixed or is_coded else found
