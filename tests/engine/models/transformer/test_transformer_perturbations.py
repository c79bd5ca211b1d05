"""The plan of what each block keeps."""

import pytest
import torch

from aiprod_engine.errors import MismatchError
from aiprod_engine.models.transformer.perturbations import BlockKeep, plan_keep

LIKE = torch.zeros(2, 3, 4, dtype=torch.bfloat16)


def record(kind, blocks):
    return {"type": f"skip_{kind}", "blocks": blocks}


def test_no_perturbation_keeps_everything():
    assert plan_keep(None, 3, LIKE) == [BlockKeep()] * 3
    assert plan_keep([[], []], 3, LIKE) == [BlockKeep()] * 3
    nowhere = [record("video_self_attn", [])]
    assert plan_keep([nowhere, nowhere], 3, LIKE) == [BlockKeep()] * 3


def test_all_samples_perturbed_is_false_and_some_is_a_mask():
    plan = plan_keep(
        [[record("video_self_attn", [1]), record("a2v_cross_attn", None)],
         [record("video_self_attn", [1, 2])]],
        3, LIKE,
    )  # fmt: skip
    assert [p.video_self is False for p in plan] == [False, True, False]
    assert plan[0].video_self is True
    assert plan[2].video_self.flatten().tolist() == [1, 0]
    assert plan[2].video_self.shape == (2, 1, 1)
    assert plan[2].video_self.dtype == LIKE.dtype
    assert all(p.a2v.flatten().tolist() == [0, 1] for p in plan)
    assert all(p.audio_self is True and p.v2a is True for p in plan)


def test_records_of_a_sample_add_up_in_any_order():
    records = [
        record("audio_self_attn", [0]),
        record("audio_self_attn", []),
        record("audio_self_attn", [2]),
        record("v2a_cross_attn", [1]),
    ]
    for own in (records, records[::-1]):
        plan = plan_keep([own], 3, LIKE[:1])
        assert [p.audio_self for p in plan] == [False, True, False]
        assert [p.v2a for p in plan] == [True, False, True]


def test_one_list_per_sample():
    with pytest.raises(MismatchError, match="one list per sample, found 1 for a batch of 2"):
        plan_keep([[]], 3, LIKE)


def test_unknown_type_is_named():
    with pytest.raises(MismatchError, match=r"must be one of .*, found 'skip_text'"):
        plan_keep([[record("text", None)], []], 3, LIKE)
