"""`rounding.round_in_torch` as one Triton kernel, bit for bit; the reasons are explained there."""

from functools import lru_cache

import torch
from torch import Tensor

_BLOCK = 1024  # elements per program


def round_in_triton(x: Tensor, grid: tuple[int, int, int], seed: int) -> Tensor:
    """Codes (uint8) of `x` (count,) on the grid of `rounding.fp8_grid`."""
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    programs = -(-len(x) // _BLOCK)
    if programs:
        with torch.cuda.device_of(x):  # Triton launches on the current device
            kernel()[(programs,)](x, codes, len(x), seed, *grid, _BLOCK)
    return codes


@lru_cache(maxsize=1)
def kernel():
    """The kernel, not yet compiled."""
    import triton
    import triton.language as tl

    @triton.jit(do_not_specialize=["count", "seed"])
    def round_block(
        values,
        codes,
        count,
        seed,
        smallest: tl.constexpr,
        dropped: tl.constexpr,
        largest: tl.constexpr,
        block: tl.constexpr,
    ):
        first = tl.program_id(0).to(tl.int64) * block
        n = first + tl.arange(0, block)
        bits = tl.load(values + n, mask=n < count, other=0.0).to(tl.float32)
        bits = bits.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        finite = tl.minimum(magnitude, largest)
        exponent = finite >> 23
        places = tl.minimum(dropped + tl.maximum(smallest - exponent, 0), 56)
        significand = ((finite & 0x7FFFFF) | 0x800000).to(tl.int64)

        counter = (first // 4 + tl.arange(0, block // 4)).to(tl.uint32)
        zero = counter * 0
        word0, word1, word2, word3 = tl.philox(seed, counter, zero, zero, zero)
        noise = tl.interleave(tl.interleave(word0, word2), tl.interleave(word1, word3))

        steps = (((significand << 32) >> places) + noise.to(tl.int64)) >> 32
        code = steps.to(tl.int32) + (tl.maximum(exponent - smallest, 0) << (23 - dropped))
        code = tl.where(magnitude > 0x7F800000, 127, code) | ((bits >> 24) & 128)
        tl.store(codes + n, code.to(tl.uint8), mask=n < count)

    return round_block
