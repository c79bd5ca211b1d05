import pytest
import torch
from goldens import golden

from aiprod_engine.media.hdr import acescct_decode, acescct_encode, logc3_decode, logc3_encode

CURVES = {"logc3": (logc3_encode, logc3_decode), "acescct": (acescct_encode, acescct_decode)}


@pytest.mark.parametrize("case", golden("conditioning/hdr_transfer"))
@pytest.mark.parametrize("name", CURVES)
def test_curves(case, name):
    encode, decode = CURVES[name]
    case.check(f"{name}_encode", encode(case.inputs["linear"]))
    case.check(f"{name}_decode", decode(case.inputs["code"]))


@pytest.mark.parametrize("name", CURVES)
def test_round_trip_without_clamping(name):
    encode, decode = CURVES[name]
    linear = torch.tensor([-0.5, -0.001, 0.0, 0.004, 0.18, 1.0, 30.0])
    torch.testing.assert_close(decode(encode(linear)), linear, rtol=1e-4, atol=1e-6)
