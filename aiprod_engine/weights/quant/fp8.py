"""fp8 weights: casting, per-tensor scaling, storage of our own, the scaled matmul."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .formats import LayerFormat
from .rounding import round_stochastically

E4M3 = torch.float8_e4m3fn
_ROWS = 4096  # tokens cast at a time: float32 copies of all would be larger than the layer's result

# Linears of a block that the authors' fp8 policy stores in fp8 (2.0, 2.3, 2.5); `audio_ff` ends
# in the same names. Gates, norms, tables and everything outside the blocks stay as they are.
_TARGETS = (".to_q", ".to_k", ".to_v", ".to_out.0", "ff.net.0.proj", "ff.net.2")


def cast(x: Tensor, dtype: torch.dtype = E4M3) -> Tensor:
    """Nearest fp8 value, clamped first: a plain cast makes NaN (e4m3) or inf (e5m2) of the rest."""
    limit = torch.finfo(dtype).max
    return x.clamp(-limit, limit).to(dtype)


def quantize(
    weight: Tensor, dtype: torch.dtype = E4M3, seed: int | None = None
) -> tuple[Tensor, Tensor]:
    """(fp8 weight, float32 0-dim weight_scale) with one scale for the tensor.

    Nearest rounding, or unbiased stochastic rounding if a seed is given.
    """
    weight = weight.float()
    peak = weight.abs().max()
    inverse = torch.where(peak > 0, torch.finfo(dtype).max / peak, 1.0)
    return _rounded(weight * inverse, dtype, seed), inverse.reciprocal()


def requantize(
    layer: LayerFormat, dtype: torch.dtype, fused: Tensor, seed: int | None
) -> dict[str, Tensor]:
    """Tensors by role that replace those of an fp8 layer after adapters changed its weight.

    `dtype` is that of the stored weight. A scaled layer gets a fresh scale, its `input_scale`
    stays. Stochastic rounding (`rounding.layer_seed`) keeps updates below half a step.
    """
    if layer.name in ("float8_e4m3fn", "float8_e5m2"):
        weight, scale = quantize(fused, dtype, seed)
        return {"weight": weight, "weight_scale": scale}
    if layer.name == "fp8_cast":
        return {"weight": _rounded(fused.float(), dtype, seed)}
    raise ValueError(f"only fp8 layers are requantised, got {layer.name}; use the side path")


def is_storage_target(module: str) -> bool:
    """Whether the fp8 storage option covers this linear of the transformer."""
    return module.startswith("transformer_blocks.") and module.endswith(_TARGETS)


def storage_formats(modules: Iterable[str]) -> dict[str, LayerFormat]:
    """Formats that turn an unquantised transformer into fp8 storage: weights `cast`, biases kept.

    The reference casts the biases too, which costs accuracy and saves next to nothing.
    """
    return {module: LayerFormat("fp8_cast") for module in modules if is_storage_target(module)}


def has_scaled_matmul(device: torch.device) -> bool:
    """Whether the device multiplies fp8 matrices: NVIDIA from compute capability 8.9.

    AMD devices are called cuda too, and number their capabilities otherwise.
    """
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return is_nvidia and torch.cuda.get_device_capability(device) >= (8, 9)


def scaled_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, input_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """`F.linear` in fp8: e4m3 activations and weight (out, in), float32 scales with one element.

    Activations are clamped to the fp8 range; without that, published files give NaN.
    """
    rows = x.reshape(-1, x.shape[-1])
    flat = rows.new_empty(rows.shape, dtype=weight.dtype)
    for part, result in zip(rows.split(_ROWS), flat.split(_ROWS), strict=True):
        result.copy_(cast(part.float() / input_scale, weight.dtype))
    y = torch._scaled_mm(
        flat,
        weight.t(),
        scale_a=input_scale.reshape(()),
        scale_b=weight_scale.reshape(()),
        out_dtype=x.dtype,
        use_fast_accum=True,
    )
    if bias is not None:
        y = y + bias.to(x.dtype)
    return y.view(*x.shape[:-1], -1)


def _rounded(x: Tensor, dtype: torch.dtype, seed: int | None) -> Tensor:
    return cast(x, dtype) if seed is None else round_stochastically(x, dtype, seed)
