"""GGUF block types against the recorded decoder and, for random bytes, against PyPI `gguf`."""

import numpy as np
import pytest
import torch
from goldens import golden

from aiprod_engine.errors import CheckpointError
from aiprod_engine.weights.containers.gguf_header import BLOCKS
from aiprod_engine.weights.quant.gguf_blocks import decode_blocks

QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
QUANTISED += ("IQ4_NL", "IQ4_XS")


@pytest.mark.parametrize("case", golden("checkpoints/gguf_blocks"))
def test_blocks_decode_to_the_last_bit(case):
    for kind, raw in case.inputs.items():
        values = decode_blocks(kind, raw)
        case.check(kind, values)
        assert torch.equal(values, case.outputs[kind]), kind


@pytest.mark.parametrize("kind", QUANTISED)
def test_random_bytes_agree_with_the_reference_reader(kind):
    """Every code and scale, not only those that an encoder writes."""
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    rows = np.random.default_rng(3).integers(0, 256, (64, 3 * BLOCKS[kind][1]), dtype=np.uint8)
    with np.errstate(all="ignore"):  # random scales hold inf and NaN
        expected = quants.dequantize(rows, GGMLQuantizationType[kind])
    actual = decode_blocks(kind, torch.from_numpy(rows))
    assert torch.equal(actual.isnan(), torch.from_numpy(expected).isnan())
    assert torch.equal(actual.nan_to_num(), torch.from_numpy(expected).nan_to_num())


def test_plain_types_and_leading_axes():
    values = torch.randn(2, 3, 8)
    for kind, dtype in (("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)):
        raw = values.to(dtype).view(torch.uint8)
        assert torch.equal(decode_blocks(kind, raw), values.to(dtype).float())


def test_wrong_types_and_rows_are_refused():
    with pytest.raises(CheckpointError, match="IQ2_XS is not supported"):
        decode_blocks("IQ2_XS", torch.zeros(1, 34, dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="blocks of 34 bytes"):
        decode_blocks("Q8_0", torch.zeros(1, 35, dtype=torch.uint8))
