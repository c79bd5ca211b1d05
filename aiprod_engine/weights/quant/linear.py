"""Linears whose weight stays as it is stored; the model code knows nothing of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import CheckpointError
from ..containers.gguf_header import BLOCKS
from ..lora.side_path import SidePath, replace_module
from . import fp8
from .dequantize import dequantize
from .formats import LayerFormat
from .precision import multiplies_in_fp8

_ONE_BYTE = {
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "fp8_cast": torch.float8_e4m3fn,
    "mxfp8": torch.float8_e4m3fn,
    "int8_tensorwise": torch.int8,
}
_HALF_BYTE = {"nvfp4": torch.uint8, "asym_w4a8_int8": torch.int8}


def convert(
    model: nn.Module, formats: Mapping[str, LayerFormat], scaled_matmul: bool = False
) -> None:
    """Replace the linear `name` of `model` by one that holds its weight in `formats[name]`.

    Meant for a model on the meta device; the packed tensors arrive by `load_state_dict` under the
    names that they have in the file. `scaled_matmul` multiplies in fp8 where layer and device can.
    """
    for name, layer in formats.items():
        linear = model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise CheckpointError(
                f"{name} is stored as {layer.name}; only linear layers stay quantised, "
                f"this is a {type(linear).__name__}"
            )
        replace_module(model, name, QuantizedLinear(linear, layer, scaled_matmul))


def store_in_fp8(model: nn.Module) -> None:
    """Cast the block linears of a loaded transformer to fp8, one by one; biases are kept."""
    for name, layer in fp8.storage_formats(linear_names(model)).items():
        linear = model.get_submodule(name)
        packed = QuantizedLinear(linear, layer)
        packed.weight = fp8.cast(linear.weight.detach())
        replace_module(model, name, packed.train(linear.training))


def linear_names(model: nn.Module) -> list[str]:
    """Names of the linears that hold their weight as it is."""
    return [name for name, module in model.named_modules() if type(module) is nn.Linear]


class QuantizedLinear(SidePath):
    """A linear of `linear`'s size over packed buffers; the weight is rebuilt at each use.

    Nothing is cached: the weight lives for one call. `quant` names the format.
    """

    def __init__(self, linear: nn.Linear, layer: LayerFormat, scaled_matmul: bool = False):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.layer = layer
        self.scaled_matmul = scaled_matmul and _multiplies_in_fp8(linear, layer)
        tensors = layer.tensors or {"weight": "weight"}
        self.names = {role: key.rpartition(".")[2] for role, key in tensors.items()}
        for role, name in self.names.items():
            self.register_buffer(name, self._placeholder(role))
        self.register_parameter("bias", linear.bias)

    @property
    def quant(self) -> str:
        return self.layer.name

    def packed(self) -> dict[str, Tensor]:
        """The stored tensors by role."""
        return {role: getattr(self, name) for role, name in self.names.items()}

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Weight (out, in), computed in float32 and rounded once to `dtype`."""
        weight = dequantize(self.layer, self.packed(), dtype)
        return weight.view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)  # old files keep it in fp8
        if self.scaled_matmul and x.dtype != torch.float32 and fp8.has_scaled_matmul(x.device):
            t = self.packed()
            y = fp8.scaled_linear(x, t["weight"], t["weight_scale"], t["input_scale"], bias)
        else:
            y = F.linear(x, self.dequantized(x.dtype), bias)
        return self.add_side_path(x, y)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, quant={self.quant}"

    def _placeholder(self, role: str) -> Tensor:
        """Meta tensor of the stored weight's shape; scales take theirs from the file."""
        if role != "weight":
            return torch.empty((), device="meta")
        rows, columns, kind = self.out_features, self.in_features, self.layer.name
        if kind in _HALF_BYTE:
            return torch.empty(rows, columns // 2, dtype=_HALF_BYTE[kind], device="meta")
        if kind in _ONE_BYTE:
            return torch.empty(rows, columns, dtype=_ONE_BYTE[kind], device="meta")
        elements, size = BLOCKS[kind.removeprefix("gguf:")]
        whole = columns % elements == 0  # else the writer folded the tensor into one row
        shape = (
            (rows, columns // elements * size) if whole else (rows * columns // elements * size,)
        )
        return torch.empty(shape, dtype=torch.uint8, device="meta")

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest) -> None:
        """Files write one scale as [], [1], [out] or [out, 1]: take the shape that is there."""
        for role, name in self.names.items():
            stored = state_dict.get(prefix + name)
            if stored is not None and role != "weight":
                self.register_buffer(name, torch.empty_like(stored, device="meta"))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _multiplies_in_fp8(linear: nn.Linear, layer: LayerFormat) -> bool:
    """The kernel also needs both sizes in 16s."""
    in_steps = linear.in_features % 16 == 0 and linear.out_features % 16 == 0
    return in_steps and multiplies_in_fp8(layer)
