import pytest

from aiprod_engine.errors import MismatchError, SizeError
from aiprod_engine.latents import rules


@pytest.mark.parametrize(
    "check",
    [
        lambda: rules.check_clip(120, 512, 768),
        lambda: rules.check_clip(121, 500, 768),
        lambda: rules.check_clip(121, 544, 960, two_stage=True),
        lambda: rules.check_dfr_frames(1),
        lambda: rules.check_dfr_frames(10),
        lambda: rules.check_reference_size(544, 960, 2),
        lambda: rules.check_strength(1.01),
        lambda: rules.check_strength(float("nan")),
        lambda: rules.check_frame_index(121, 121),
        lambda: rules.check_frame_index(-1, 121),
        lambda: rules.check_latent_span(3, 2, 4),
        lambda: rules.check_region(2.0, 2.0),
        lambda: rules.check_duration(None, has_duration_head=False),
        lambda: rules.slot_frames(24, 25),
        lambda: rules.slot_frames([3, 3], 25),
        lambda: rules.slot_frames([25], 25),
    ],
)
def test_off_the_rules(check):
    with pytest.raises(SizeError):
        check()


def test_within_the_rules():
    rules.check_clip(1, 32, 32)
    rules.check_clip(121, 544, 960)
    rules.check_clip(121, 1088, 1920, two_stage=True)
    rules.check_dfr_frames(9)
    rules.check_reference_size(512, 768, 2)
    rules.check_strength(0)
    rules.check_latent_span(3, 1, 4)
    rules.check_region(0.0, 0.1)
    rules.check_duration(None, has_duration_head=True)
    rules.check_keyframe_slots({"use_keyframes_abs_pos_embedding": True})


def test_slots_need_the_embedding():
    with pytest.raises(MismatchError, match=r"2\.5"):
        rules.check_keyframe_slots({})


def test_slot_request():
    assert rules.slot_frames(3, 121) == (30, 60, 90)
    assert rules.slot_frames(1, 10) == (4,)  # 4.5 rounds to even
    assert rules.slot_frames(0, 9) == ()
    assert rules.slot_frames([16, 8], 25) == (8, 16)
