"""The verdict: what it takes to call a schedule better, and that the controls are what they say."""

from dataclasses import replace

import numpy as np
import pytest

from qsched.jaq import Interval
from qsched.validation import HeldOut, held_out, sentence_of, verdict_of

ABOVE, ACROSS, BELOW = Interval(0.2, 0.1, 0.3), Interval(0.1, -0.1, 0.3), Interval(-0.2, -0.3, -0.1)
PLAIN = HeldOut(1.0, 1.0, 1.0, 1.0, gain=ACROSS, control=ACROSS, repair=ACROSS, independent=False)


def metrics(
    jaq: Interval, unseen: Interval, *, scorer: Interval = ABOVE, other: Interval = ABOVE
) -> dict[str, HeldOut]:
    """JAQ, one of its terms, an independent metric, and one that shares a network with a scorer."""
    return {
        "jaq": replace(PLAIN, gain=jaq),
        "demo-alignment": replace(PLAIN, gain=scorer),
        "similarity": replace(PLAIN, gain=unseen, independent=True),
        "attributes": replace(PLAIN, gain=other),
    }


@pytest.mark.parametrize(
    ("jaq", "unseen", "expected"),
    [
        (ABOVE, ABOVE, "improved"),
        (ABOVE, ACROSS, "not_shown"),  # the objective alone proves nothing
        (ABOVE, BELOW, "not_shown"),
        (ACROSS, ABOVE, "not_shown"),
        (ACROSS, ACROSS, "not_shown"),
        (BELOW, ABOVE, "worse"),
        (BELOW, BELOW, "worse"),
    ],
)
def test_improved_needs_jaq_and_a_metric_the_search_never_saw(
    jaq: Interval, unseen: Interval, expected: str
) -> None:
    assert verdict_of(metrics(jaq, unseen), is_identity=False) == expected


def test_a_metric_that_shares_a_network_with_the_search_is_no_evidence() -> None:
    shared_only = metrics(ABOVE, ACROSS, other=ABOVE, scorer=ABOVE)
    assert verdict_of(shared_only, is_identity=False) == "not_shown"


def test_the_identity_is_never_an_improvement() -> None:
    assert verdict_of(metrics(ABOVE, ABOVE), is_identity=True) == "not_shown"


@pytest.mark.parametrize(
    ("jaq", "unseen", "words"),
    [
        (ABOVE, ABOVE, ["better", "+0.200 [+0.100, +0.300]", "similarity", "never saw"]),
        (ABOVE, ACROSS, ["the objective improved", "not shown", "unmodified schedule is kept"]),
        (ACROSS, ABOVE, ["no improvement is shown", "[-0.100, +0.300]"]),
        (BELOW, ABOVE, ["worse", "[-0.300, -0.100]"]),
    ],
)
def test_the_sentence_says_what_it_rests_on(
    jaq: Interval, unseen: Interval, words: list[str]
) -> None:
    rows = metrics(jaq, unseen)
    sentence = sentence_of(verdict_of(rows, is_identity=False), rows, False, 64)
    assert "64 held-out prompts" in sentence
    for word in words:
        assert word in sentence


def scores(
    gain: np.ndarray, control: np.ndarray, level: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    return {
        "full_precision": {"m": level + 1},
        "full_precision_calibrated": {"m": level + 1 + control},
        "identity": {"m": level},
        "calibrated": {"m": level + gain},
    }


def test_gain_control_and_repair_are_paired_differences() -> None:
    """Prompts differ by 100 times the gain, which pairing takes out."""
    rng = np.random.default_rng(0)
    level = rng.normal(0, 100, 64)
    gain = 1 + rng.normal(0, 0.1, 64)
    control = 0.4 + rng.normal(0, 0.1, 64)
    captions = [f"p{index}" for index in range(64)]
    row = held_out("m", scores(gain, control, level), captions, independent=True, confidence=0.95)
    assert row.gain.mean == pytest.approx(gain.mean())
    assert row.control.mean == pytest.approx(control.mean())
    assert row.repair.mean == pytest.approx(gain.mean() - control.mean())
    assert row.gain.low > 0.95
    assert row.repair.low > 0.5
    assert row.calibrated - row.identity == pytest.approx(row.gain.mean)
    document = row.to_dict()
    assert document["difference"] == pytest.approx(document["calibrated"] - document["identity"])
    assert document["interval"] == [row.gain.low, row.gain.high]


def test_an_effect_that_full_precision_shares_is_no_repair() -> None:
    rng = np.random.default_rng(1)
    shared = 1 + rng.normal(0, 0.1, 64)
    captions = [f"p{index}" for index in range(64)]
    rows = scores(shared, shared + rng.normal(0, 0.1, 64), np.zeros(64))
    row = held_out("m", rows, captions, independent=False, confidence=0.95)
    assert row.gain.above_zero
    assert not row.repair.above_zero


def test_several_independent_metrics_share_the_doubt() -> None:
    """Their intervals are wider, by Bonferroni; those of other metrics are not."""
    rng = np.random.default_rng(2)
    rows = scores(rng.normal(0, 1, 40), np.zeros(40), np.zeros(40))
    captions = [f"p{index // 2}" for index in range(40)]
    one = held_out("m", rows, captions, independent=True, confidence=0.95).gain
    two = held_out("m", rows, captions, independent=True, confidence=0.975).gain
    seen = held_out("m", rows, captions, independent=False, confidence=0.975).gain
    assert two.high - two.low > one.high - one.low
    assert seen == one
