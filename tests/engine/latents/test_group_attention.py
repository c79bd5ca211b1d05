import pytest
import torch
from goldens import golden

from aiprod_engine.errors import SizeError
from aiprod_engine.latents.attention import AttentionStrength, with_attention
from aiprod_engine.latents.conditioning import KeyframeIndex, LatentIndex, apply_all
from aiprod_engine.latents.positions import VideoGrid
from aiprod_engine.latents.references import ReferenceLatent
from aiprod_engine.latents.state import video_state


def clip(frames):
    return torch.zeros(1, 4, frames, 2, 3)


GRID = VideoGrid(4, 2, 3, 24.0)


@pytest.mark.parametrize("case", golden("conditioning/attention_mask"))
def test_masks_of_chained_items(case):
    call = case.call
    assert call["grid"] == [4, 2, 3]
    items = {
        "scalar": AttentionStrength(ReferenceLatent(clip(1)), call["scalar"]),
        "per_token": AttentionStrength(ReferenceLatent(clip(4)), case.inputs["per_token"]),
        "plain": KeyframeIndex(clip(1), 0),
    }
    for name, chain in call["chains"].items():
        state = apply_all(video_state(clip(4), 24.0), [items[key] for key in chain], GRID)
        if f"{name}.mask" in case.outputs:
            case.check(f"{name}.mask", state.attention_mask)
        else:
            assert state.attention_mask is None
            assert not case.outputs[f"{name}.has_mask"].any()


def test_item_that_adds_nothing_passes_through():
    state = AttentionStrength(LatentIndex(clip(1)), 0.5).apply(video_state(clip(4), 24.0), GRID)
    assert state.attention_mask is None


def test_weights_may_differ_per_sample():
    weights = torch.tensor([[0.1] * 6, [0.7] * 6])
    state = video_state(clip(4).expand(2, -1, -1, -1, -1), 24.0)
    mask = AttentionStrength(ReferenceLatent(clip(1)), weights).apply(state, GRID).attention_mask
    assert torch.equal(mask[:, :24, 24:], weights[:, None].expand(2, 24, 6))
    assert torch.equal(mask[:, 24:, :24], weights[:, :, None].expand(2, 6, 24))


def test_full_strength_needs_no_mask():
    item = ReferenceLatent(clip(1))
    assert with_attention(item, 1.0) is item
    assert with_attention(item, 0.5) == AttentionStrength(item, 0.5)
    weighted = with_attention(item, 0.5, torch.full((1, 6), 0.5))
    assert torch.equal(weighted.weight, torch.full((1, 6), 0.25))


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), torch.tensor([0.5, 2.0])])
def test_strength_outside_raises(weight):
    with pytest.raises(SizeError, match=r"\[0, 1\]"):
        AttentionStrength(ReferenceLatent(clip(1)), weight)


def test_wrong_number_of_weights_raises():
    item = AttentionStrength(ReferenceLatent(clip(1)), torch.ones(5))
    with pytest.raises(SizeError, match="one per appended token"):
        item.apply(video_state(clip(4), 24.0), GRID)
