"""Noise schedules."""

import pytest
import torch
from goldens import golden

from aiprod_engine.errors import SizeError
from aiprod_engine.sampling import schedules


@pytest.mark.parametrize("case", golden("sampling/sigmas_ltx2"))
def test_ltx2(case):
    for i, options in enumerate(case.call["cases"]):
        if options.get("tokens", 0) is None:
            del options["tokens"]
        sigmas = schedules.ltx2(**options)
        case.check(f"sigmas.{i}", sigmas)
        # Stricter than the fixture's bound: the same float32 operations give the same bits.
        assert torch.equal(sigmas, case.outputs[f"sigmas.{i}"])


@pytest.mark.parametrize("case", golden("sampling/sigmas_linear_quadratic"))
def test_linear_quadratic(case):
    for i, options in enumerate(case.call["cases"]):
        if "threshold_noise" in options:
            options["threshold"] = options.pop("threshold_noise")
        case.check(f"sigmas.{i}", schedules.linear_quadratic(**options))


@pytest.mark.parametrize("case", golden("sampling/sigmas_beta"))
def test_beta(case):
    for i, options in enumerate(case.call["cases"]):
        case.check(f"sigmas.{i}", schedules.beta(**options))


@pytest.mark.parametrize("case", golden("sampling/sigmas_distilled"))
def test_fixed_tables(case):
    case.check("stage_1", schedules.table("distilled"))
    case.check("stage_2", schedules.table("stage_2"))
    case.check("temporal_round", schedules.table("temporal_round"))


@pytest.mark.parametrize(
    ("alpha", "beta"), [(0.6, 0.6), (0.9, 0.5), (2.0, 5.0), (0.3, 4.0), (1.0, 1.0)]
)
def test_beta_quantile_inverts_the_distribution(alpha, beta):
    """Expected values: scipy."""
    distribution = pytest.importorskip("scipy.stats").beta(alpha, beta)
    for p in (1e-3, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999):
        found = schedules._beta_quantile(p, alpha, beta)
        assert found == pytest.approx(distribution.ppf(p), rel=1e-9, abs=1e-14)


def test_the_distilled_table_is_the_linear_quadratic_schedule_of_eight_steps():
    torch.testing.assert_close(schedules.linear_quadratic(8), schedules.table("distilled"))


@pytest.mark.parametrize("name", schedules.TABLES)
def test_tables_fall_to_zero(name):
    sigmas = schedules.table(name)
    assert sigmas.dtype == torch.float32
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_many_beta_steps_share_table_entries():
    sigmas = schedules.beta(40, alpha=0.1, beta=0.1)
    assert len(sigmas) < 41
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("steps", [100, 1000])
def test_beta_quantiles_may_lie_next_to_one(steps):
    sigmas = schedules.beta(steps, alpha=0.1, beta=0.1)
    assert (sigmas[0], sigmas[-1]) == (1, 0)
    assert (sigmas.diff() < 0).all()


def test_ltx2_of_very_many_tokens():
    """Where float32 shows no distance to 1 any more, 1 - sigma is proportional to 1 / t - 1."""
    steps, times = 15, torch.arange(15, 0, -1) / 15
    clean = 1 / times - 1
    expected = torch.cat([1 - 0.9 * clean / clean[-1], torch.zeros(1)])
    torch.testing.assert_close(schedules.ltx2(steps, tokens=65_000), expected)


@pytest.mark.parametrize(
    "build",
    [
        lambda: schedules.ltx2(1),
        lambda: schedules.beta(0),
        lambda: schedules.linear_quadratic(0),
        lambda: schedules.linear_quadratic(4, linear_steps=4),
        lambda: schedules.table("stage_3"),
    ],
)
def test_impossible_schedules_are_refused(build):
    with pytest.raises(SizeError):
        build()
