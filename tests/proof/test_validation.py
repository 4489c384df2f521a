"""The verdict: what it takes to call a schedule better, and that the repair is what it says."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qsched.evidence.appearance import LUMA
from qsched.evidence.guards import Guard
from qsched.prompts import Prompt
from qsched.proof.image_sets import ImageSets
from qsched.proof.outcome import HeldOut, Judged, Verdict
from qsched.proof.verdict import choose, level, sentence_of, verdict_of
from qsched.schedule.coefficients import Coefficients
from qsched.service.status import Candidate
from qsched.statistics import Interval, Values
from tests.support import fakes
from tests.support.outcomes import TRIPPED, WELL

ABOVE, ACROSS, BELOW = Interval(0.2, 0.1, 0.3), Interval(0.1, -0.1, 0.3), Interval(-0.2, -0.3, -0.1)
UNSEEN = ("similarity",)


def gains(
    jaq: Interval, unseen: Interval, *, scorer: Interval = ABOVE, other: Interval = ABOVE
) -> dict[str, Interval]:
    """JAQ, one of its terms, an independent metric, and one that shares a network with a scorer."""
    return {"jaq": jaq, "demo-alignment": scorer, "similarity": unseen, "attributes": other}


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
    assert verdict_of(gains(jaq, unseen), UNSEEN, [WELL]) == expected
    assert verdict_of(gains(jaq, unseen), UNSEEN, [WELL, TRIPPED]) == "suspicious"


def test_a_metric_that_shares_a_network_with_the_search_is_no_evidence() -> None:
    shared_only = gains(ABOVE, ACROSS, other=ABOVE, scorer=ABOVE)
    assert verdict_of(shared_only, UNSEEN) == "not_shown"


def judged(
    slot: int, value: float, verdict: str, jaq: Interval = ACROSS, guard: Guard = WELL
) -> Judged:
    candidate = Candidate(slot, value, Coefficients.ramp(4, 1 + slot / 100, 1.0))
    return Judged(candidate, gains(jaq, ABOVE), (guard,), Verdict(verdict))


def chosen(*rows: Judged) -> int:
    marked = [row.candidate.slot for row in choose(rows) if row.chosen]
    assert len(marked) == 1
    return marked[0]


def test_the_surest_of_the_improved_is_chosen() -> None:
    large, sure = Interval(0.9, 0.05, 1.7), Interval(0.3, 0.25, 0.35)
    best = judged(1, 9, "not_shown")
    assert chosen(best, judged(2, 5, "improved", large), judged(3, 4, "improved", sure)) == 3


def test_else_the_best_of_the_search_that_is_not_suspicious() -> None:
    cheat = judged(1, 9, "suspicious")
    assert chosen(cheat, judged(2, 5, "not_shown"), judged(3, 6, "worse")) == 3
    assert chosen(cheat, judged(4, 10, "suspicious")) == 4
    assert choose([]) == ()


@pytest.mark.parametrize(
    ("jaq", "unseen", "words"),
    [
        (ABOVE, ABOVE, ["better", "+0.200 [+0.100, +0.300]", "similarity", "never saw"]),
        (ABOVE, ACROSS, ["the objective improved", "not shown", "unmodified schedule is kept"]),
        (ACROSS, ABOVE, ["no improvement of the best 3 candidates", "[-0.100, +0.300]"]),
        (BELOW, ABOVE, ["worse", "[-0.300, -0.100]"]),
    ],
)
def test_the_sentence_says_what_it_rests_on(
    jaq: Interval, unseen: Interval, words: list[str]
) -> None:
    rows = gains(jaq, unseen)
    row = replace(judged(1, 2, verdict_of(rows, UNSEEN)), gains=rows)
    sentence = sentence_of(row, UNSEEN, 64, 3)
    assert "64 held-out prompts" in sentence
    for word in words:
        assert word in sentence


def test_a_suspicious_sentence_names_the_guard_its_shift_and_its_limit() -> None:
    sentence = sentence_of(judged(1, 2, "suspicious", ABOVE, TRIPPED), UNSEEN, 64, 3)
    assert "saturation is +40% off full precision (limit 15%)" in sentence
    assert "unmodified schedule is kept" in sentence


def rows(gain: Values, taste: Values, plain: Values) -> dict[str, Values]:
    return {
        "full_precision": plain + 1,
        "full_precision_calibrated": plain + 1 + taste,
        "identity": plain,
        "calibrated": plain + gain,
    }


def test_gain_taste_and_repair_are_paired_differences() -> None:
    """Prompts differ by 100 times the gain, which pairing takes out."""
    rng = np.random.default_rng(0)
    plain = rng.normal(0, 100, 64)
    gain = 1 + rng.normal(0, 0.1, 64)
    taste = 0.4 + rng.normal(0, 0.1, 64)
    own = 0.9 + rng.normal(0, 0.1, 64)
    captions = [f"p{index}" for index in range(64)]
    row = HeldOut.measured(rows(gain, taste, plain), captions, independent=True, confidence=0.95)
    assert row.taste is not None
    assert row.repair is not None
    assert row.gain.mean == pytest.approx(gain.mean())
    assert row.taste.mean == pytest.approx(taste.mean())
    assert row.repair.mean == pytest.approx(gain.mean() - taste.mean())
    assert row.gain.low > 0.95
    assert row.repair.low > 0.5
    assert row.calibrated - row.identity == pytest.approx(row.gain.mean)
    document = row.to_dict()
    assert document["difference"] == pytest.approx(document["calibrated"] - document["identity"])
    assert document["interval"] == [row.gain.low, row.gain.high]
    searched = HeldOut.measured(
        rows(gain, taste, plain), captions, independent=True, confidence=0.95, own_search=own
    )
    assert searched.repair is not None
    assert searched.repair.mean == pytest.approx(gain.mean() - own.mean())
    assert searched.taste == row.taste


def test_an_effect_that_full_precision_shares_is_no_repair() -> None:
    rng = np.random.default_rng(1)
    shared = 1 + rng.normal(0, 0.1, 64)
    captions = [f"p{index}" for index in range(64)]
    four = rows(shared, shared + rng.normal(0, 0.1, 64), np.zeros(64))
    row = HeldOut.measured(four, captions, independent=False, confidence=0.95)
    assert row.gain.above_zero
    assert row.repair is not None
    assert not row.repair.above_zero


def test_candidates_and_unseen_metrics_share_the_doubt() -> None:
    """Bonferroni: their intervals are wider."""
    assert level(1) == pytest.approx(0.95)
    assert level(5, 2) == pytest.approx(0.995)
    rng = np.random.default_rng(2)
    four = rows(rng.normal(0, 1, 40), np.zeros(40), np.zeros(40))
    captions = [f"p{index // 2}" for index in range(40)]
    one, five = (
        HeldOut.measured(four, captions, independent=True, confidence=level(count)).gain
        for count in (1, 5)
    )
    assert five.high - five.low > one.high - one.low


class Loudness:
    """Stands in for the instruments: luma is the score, the distance to the reference another."""

    def score(
        self, images: Tensor, prompts: Sequence[Prompt], reference: Tensor
    ) -> dict[str, list[float]]:
        luma = torch.einsum("nchw,c->n", images / 255, torch.tensor(LUMA))
        apart = (images.float() - reference.float()).abs().flatten(1).mean(dim=1)
        return {"luma": luma.tolist(), "apart": (-apart).tolist()}

    def features(self, images: Tensor) -> Values:
        return images.flatten(1).double().numpy()

    def with_jaq(self, values: Mapping[str, list[float]]) -> dict[str, Values]:
        return {name: np.asarray(listed) for name, listed in values.items()}


class Generator(fakes.FakeGenerator):
    """Needs no preparation."""

    def prepare(self, prompts: Sequence[Prompt]) -> None: ...


class Unseen:
    """Images of one pixel have no edges to look at."""

    def add(self, images: Tensor) -> None: ...

    def values(self, captions: Sequence[str]) -> dict[str, float]:
        return {}


@pytest.fixture
def prompts(tmp_path: Path) -> tuple[Prompt, ...]:
    """3 captions with 2 seeds each."""
    return fakes.study(tmp_path).held_out


PLAIN, FOUND = Coefficients.identity(4), Coefficients.ramp(4, 0.5, 0.7)


def test_each_set_is_made_once_and_measured_beside_the_first(prompts: Sequence[Prompt]) -> None:
    generator, made = Generator(), list[int]()
    sets = ImageSets(prompts, Loudness(), made.append, Unseen)
    first = sets.measure(generator, [PLAIN, PLAIN])[PLAIN]
    assert sum(made) == sets.images == len(generator.made) == 6
    assert set(first.scores["apart"]) == {0}
    second = sets.measure(generator, [FOUND])[FOUND]
    expected = [255 * (0.5 + 0.3) / 3] * 6  # how far c_eps and c_x of the fake images moved
    assert second.scores["apart"] == pytest.approx([-value for value in expected], abs=0.5)
    assert first.pictures.shape == (3, 1, 1, 3)
    assert sets.shown == ("g", "h", "i")
    assert second.features is not None
    assert second.features.shape == (6, 3)


def test_what_is_too_much_at_once_is_made_in_halves(prompts: Sequence[Prompt]) -> None:
    whole, crowded = Generator(batch_size=4), Generator(batch_size=4)
    crowded.room = 1
    results = []
    for generator in (whole, crowded):
        made: list[int] = []
        sets = ImageSets(prompts, Loudness(), made.append, Unseen)
        results.append(sets.measure(generator, [PLAIN, FOUND]))
        assert sum(made) == 12
    assert crowded.batch_size == 1
    for coefficients in (PLAIN, FOUND):
        for name in ("luma", "apart"):
            one, other = (result[coefficients].scores[name] for result in results)
            assert np.array_equal(one, other)
