"""Adapters beside a linear instead of in its weight: `y = Q(x) + B (A x)`."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import MismatchError
from .stack import LoraSet


class SidePath(nn.Module):
    """A linear with an optional low-rank branch; scale and strength are folded into `up`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Not part of the checkpoint, but moved with the module.
        self.register_buffer("adapter_down", None, persistent=False)
        self.register_buffer("adapter_up", None, persistent=False)

    def set_adapter(self, down: Tensor | None, up: Tensor | None) -> None:
        """Use `down` (rank, in) and `up` (out, rank) from now on; None removes the branch."""
        self.adapter_down, self.adapter_up = down, up

    def add_side_path(self, x: Tensor, y: Tensor) -> Tensor:
        """`y` (..., out) plus the branch on the unquantised input `x` (..., in)."""
        if self.adapter_down is None:
            return y
        return y + F.linear(F.linear(x, self.adapter_down), self.adapter_up)


class AdaptedLinear(SidePath, nn.Linear):
    """An unquantised linear with a side path; it shares the tensors of the one it replaces."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.add_side_path(x, F.linear(x, self.weight, self.bias))


def attach(
    model: nn.Module,
    loras: LoraSet,
    dtype: torch.dtype,
    modules: Collection[str] | None = None,
) -> None:
    """Give the linears of `modules` (default: all that `loras` touches) their adapters in `dtype`.

    Earlier adapters of `modules` (default: of the whole model) are dropped, so a swap is one call;
    the weights are neither read nor changed. Bias deltas are not part of the branch: they belong
    to `LoraSet.fuse`. What can fail comes first, so that a failure changes nothing.
    """
    names = loras.modules if modules is None else loras.modules & set(modules)
    linears = {name: _with_side_path(model, name) for name in names}
    pairs = {
        name: [factor.to(linear.weight.device) for factor in loras.low_rank(name, dtype)]
        for name, linear in linears.items()
    }
    for name, module in list(model.named_modules()):
        if isinstance(module, SidePath) and (modules is None or name in modules):
            module.set_adapter(None, None)
    for name, linear in linears.items():
        linear.set_adapter(*pairs[name])


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where `model` has its submodule `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _with_side_path(model: nn.Module, name: str) -> SidePath:
    linear = model.get_submodule(name)
    if isinstance(linear, SidePath):
        return linear
    if not isinstance(linear, nn.Linear):
        raise MismatchError(f"an adapter targets {name}, which is no linear layer")
    adapted = AdaptedLinear(linear)
    replace_module(model, name, adapted)
    return adapted
