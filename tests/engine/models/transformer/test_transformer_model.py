"""The whole network against recorded outputs."""

import pytest
import torch
from goldens import Case, golden


def check_outputs(case, outputs):
    for name, value in zip(("video", "audio"), outputs, strict=True):
        if name in case.outputs:
            case.check(name, value)
        else:
            assert value is None


@pytest.mark.parametrize(
    "case", golden("transformer/full_*", "transformer/video_only_*", "transformer/audio_only_*")
)
def test_forward_matches_the_reference(case, load_transformer, streams_of):
    dtype = getattr(torch, case.call.get("dtype", "float32"))
    model = load_transformer(case, dtype)
    outputs = model(*streams_of(case, dtype), case.call.get("perturbations"))
    assert all(x is None or x.dtype == dtype for x in outputs)
    check_outputs(case, outputs)


@pytest.mark.parametrize("case", golden("transformer/full_v2*"))
def test_bf16_stays_within_six_percent(case, load_transformer, streams_of):
    """Measured 0.4 to 4 % of each output's maximum; tables stay float32, as published."""
    model = load_transformer(case, torch.bfloat16)
    with torch.no_grad():
        for name, parameter in list(model.named_parameters()):
            if "scale_shift_table" in name:
                parameter.data = parameter.data.float()
    outputs = model(*streams_of(case, torch.bfloat16), case.call.get("perturbations"))
    for name, value in zip(("video", "audio"), outputs, strict=True):
        if name in case.outputs:
            bound = 0.06 * case.outputs[name].abs().max()
            assert (value - case.outputs[name]).abs().max() < bound


@pytest.mark.parametrize(
    "case", golden("checkpoints/ltx2_20_tiny.expected", "checkpoints/ltx2_23_tiny.expected")
)
def test_tiny_checkpoint_matches_the_reference(case, load_transformer, as_modality):
    checkpoint = Case(case.name.removesuffix(".expected"))
    root = "model.diffusion_model."
    weights = {k: v for k, v in checkpoint.tensors.items() if k.startswith(root)}
    model = load_transformer(checkpoint, weights=weights)
    video, audio = (as_modality(case.group(f"in.transformer.{s}.")) for s in ("video", "audio"))
    vx, ax = model(video, audio)
    case.check("transformer.video", vx)
    case.check("transformer.audio", ax)
