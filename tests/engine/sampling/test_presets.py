"""Presets by version and the default negative prompt."""

import pytest

from aiprod_engine.sampling.guidance import Guidance
from aiprod_engine.sampling.negative_prompt import NEGATIVE_PROMPT
from aiprod_engine.sampling.presets import (
    distilled_is_ancestral,
    hq_preset,
    parse_version,
    preset,
)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("2.3.rc1", (2, 3)),
        ("2.4-rc2", (2, 4)),
        ("2.5.0", (2, 5, 0)),
        ("2-3", (2, 3)),
        ("2", (2,)),
        ("v2.3", ()),
        ("", ()),
        (None, ()),
    ],
)
def test_leading_integers_of_a_version(text, numbers):
    assert parse_version(text) == numbers


@pytest.mark.parametrize(
    ("version", "steps", "block", "crf"),
    [
        ("2.0", 40, 29, 33),
        (None, 40, 29, 33),
        ("2", 40, 29, 33),
        ("2.1", 40, 29, 33),
        ("unreadable", 40, 29, 33),
        ("v2.5", 40, 29, 33),
        ("2.rc5", 40, 29, 33),
        ("2.10", 30, 28, 18),
        ("2.3", 30, 28, 33),
        ("2.3.7", 30, 28, 33),
        ("2.4-rc2", 30, 28, 18),
        ("2.5.0", 30, 28, 18),
        ("3.0", 30, 28, 18),
    ],
)
def test_presets(version, steps, block, crf):
    row = preset(version)
    assert (row.steps, row.crf) == (steps, crf)
    assert row.video == Guidance(3.0, 1.0, (block,), 0.7, 3.0)
    assert row.audio == Guidance(7.0, 1.0, (block,), 0.7, 3.0)


def test_hq_preset():
    row = hq_preset("2.3")
    assert (row.steps, row.crf) == (15, 33)
    assert row.video == Guidance(3.0, 0.0, (), 0.45, 3.0)
    assert row.audio == Guidance(7.0, 0.0, (), 1.0, 3.0)
    assert hq_preset("2.5").crf == 18


@pytest.mark.parametrize(
    ("version", "ancestral"),
    [("2.0", False), ("2.3", False), ("2.4", False), ("2.5.0", True), ("3", True), (None, False)],
)
def test_ancestral_distilled_sampling_starts_with_2_5(version, ancestral):
    assert distilled_is_ancestral(version) is ancestral


def test_the_negative_prompt_is_one_line_without_repeats():
    faults = NEGATIVE_PROMPT.split(", ")
    assert len(faults) == len(set(faults)) > 50
    assert NEGATIVE_PROMPT.isascii()
    assert "\n" not in NEGATIVE_PROMPT
