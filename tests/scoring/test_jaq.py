"""JAQ by hand, and an interval that covers what it says."""

import numpy as np
import pytest

from qsched.errors import ScoreError
from qsched.scoring.jaq import Objective, Scale, Term
from qsched.statistics import Interval, paired_interval

TERMS = (Term("tc", 1.0), Term("iq", 2.0))


def test_plain_jaq_is_the_papers_sum() -> None:
    objective = Objective(TERMS)
    values = objective.values({"tc": [30.0, 20.0], "iq": [0.5, 0.25]})
    assert values.tolist() == [31.0, 20.5]
    assert objective.value({"tc": [30.0, 20.0], "iq": [0.5, 0.25]}) == 25.75


def test_standardised_jaq_is_in_units_of_the_identitys_spread() -> None:
    identity = {"tc": [10.0, 20.0, 30.0], "iq": [0.1, 0.2, 0.3]}
    objective = Objective(TERMS, standardised=True).calibrated(identity)
    assert dict(objective.scales)["tc"] == Scale(20.0, 10.0)
    assert objective.value(identity) == pytest.approx(0.0)
    one_spread_better = {"tc": [20.0, 30.0, 40.0], "iq": [0.2, 0.3, 0.4]}
    assert objective.value(one_spread_better) == pytest.approx(1 + 2)


def test_k_means_the_same_whatever_the_scale_of_a_term() -> None:
    rng = np.random.default_rng(0)
    tc, iq = rng.normal(size=(2, 16))
    other = {"tc": list(tc + 0.3), "iq": list(iq - 0.1)}
    values = []
    for factor in (1.0, 100.0):
        objective = Objective(TERMS, True).calibrated({"tc": list(factor * tc), "iq": list(iq)})
        scaled = {"tc": [factor * value for value in other["tc"]], "iq": other["iq"]}
        values.append(objective.value(scaled))
    assert values[0] == pytest.approx(values[1])


def test_a_plain_objective_needs_no_calibration() -> None:
    objective = Objective(TERMS)
    assert objective.calibrated({}) is objective


def test_a_standardised_objective_is_refused_before_it_is_calibrated() -> None:
    with pytest.raises(ScoreError, match="identity"):
        Objective(TERMS, standardised=True).values({"tc": [1.0], "iq": [1.0]})


def test_a_term_without_spread_is_refused() -> None:
    with pytest.raises(ScoreError, match="iq: spread"):
        Objective(TERMS, standardised=True).calibrated({"tc": [1.0, 2.0], "iq": [0.5, 0.5]})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_never_ranked(bad: float) -> None:
    with pytest.raises(ScoreError, match="iq"):
        Objective(TERMS).values({"tc": [1.0, 2.0], "iq": [0.5, bad]})


def test_a_logarithm_is_taken_before_the_weight() -> None:
    objective = Objective((Term("tc", 3.0, log=True), Term("iq", 2.0)))
    values = objective.values({"tc": [1.0, np.e], "iq": [0.5, 0.25]})
    assert values == pytest.approx([0 + 1.0, 3 + 0.5])


def test_units_of_a_logarithm_are_those_of_the_logarithm() -> None:
    identity = {"tc": [np.exp(1.0), np.exp(2.0), np.exp(3.0)]}
    objective = Objective((Term("tc", log=True),), standardised=True).calibrated(identity)
    scale = dict(objective.scales)["tc"]
    assert (scale.centre, scale.spread) == pytest.approx((2.0, 1.0))
    assert objective.values({"tc": [np.exp(4.0)]}) == pytest.approx([2.0])


@pytest.mark.parametrize("score", [0.0, -1.0])
def test_what_has_no_logarithm_is_an_error_and_no_infinity(score: float) -> None:
    terms = (Term("tc", log=True),)
    with pytest.raises(ScoreError, match=r"tc: a score of .* has no logarithm") as raised:
        Objective(terms).values({"tc": [30.0, score]})
    assert raised.value.scorer == "tc"
    with pytest.raises(ScoreError, match="logarithm"):
        Objective(terms, standardised=True).calibrated({"tc": [30.0, score]})


def test_a_missing_score_is_named() -> None:
    with pytest.raises(ScoreError, match="iq: no score"):
        Objective(TERMS).values({"tc": [1.0]})


def test_the_interval_of_equal_differences_is_a_point() -> None:
    interval = paired_interval([2.0, 3.0, 4.0], [1.0, 2.0, 3.0], ["a", "b", "c"])
    assert interval == Interval(1.0, 1.0, 1.0)
    assert interval.above_zero
    assert not interval.below_zero


def test_pairing_removes_the_spread_between_prompts() -> None:
    rng = np.random.default_rng(1)
    level = rng.normal(0, 100, size=40)
    prompts = [str(index) for index in range(40)]
    interval = paired_interval(level + 1 + rng.normal(0, 0.1, 40), level, prompts)
    assert 0.9 < interval.low < interval.mean < interval.high < 1.1


def test_seeds_of_one_prompt_are_not_independent_evidence() -> None:
    """Copying every image ten times must not narrow the interval."""
    rng = np.random.default_rng(2)
    difference = rng.normal(0.2, 1, size=30)
    prompts = [str(index) for index in range(30)]
    once = paired_interval(difference, np.zeros(30), prompts)
    ten_times = [prompt for prompt in prompts for _ in range(10)]
    often = paired_interval(np.repeat(difference, 10), np.zeros(300), ten_times)
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.05)


def test_prompts_may_have_unequal_numbers_of_seeds() -> None:
    interval = paired_interval([1.0, 1.0, 4.0], [0.0, 0.0, 0.0], ["a", "a", "b"])
    assert interval.mean == 2.0
    assert (interval.low, interval.high) == (1.0, 4.0)


def test_a_95_percent_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(3)
    prompts = [str(index) for index in range(40)]
    covered = 0
    for seed in range(300):
        sample = rng.exponential(1.0, size=40) - 1.0  # skewed, true mean 0
        interval = paired_interval(sample, np.zeros(40), prompts, resamples=1000, seed=seed)
        covered += interval.low <= 0 <= interval.high
    assert 0.88 <= covered / 300 <= 0.98


def test_one_prompt_is_no_evidence() -> None:
    with pytest.raises(ValueError, match="two prompts"):
        paired_interval([1.0, 2.0], [0.0, 0.0], ["a", "a"])
