"""Early stopping: what stops, what the sampler learns, and that nothing else changes."""

import math
from pathlib import Path
from typing import Unpack

import numpy as np
import pytest
from optuna.trial import TrialState

from qsched.search import stopping
from qsched.service import stored_study as studies
from qsched.service.evaluator import Evaluator
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.worker import Worker
from qsched.statistics import chance_to_lead
from tests.support import fakes

BEST = {prompt: float(prompt) for prompt in range(12)}


def test_the_chance_to_lead_is_a_probability() -> None:
    """Of trials that are given a chance of p, about p lead after all prompts."""
    draws = np.random.default_rng(0)
    chances, led = [], []
    for _ in range(4000):
        differences = draws.normal(draws.normal(0, 0.5), 1.0, 32)
        chances.append(chance_to_lead(differences[:12], 32))
        led.append(differences.mean() > 0)
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = [(chance, lead) for chance, lead in zip(chances, led, strict=True)
                  if low <= chance < low + 0.25]  # fmt: skip
        expected = np.mean([chance for chance, _ in inside])
        assert np.mean([lead for _, lead in inside]) == pytest.approx(expected, abs=0.05)


def test_the_chance_at_the_ends() -> None:
    assert chance_to_lead([-1.0, -1.0, -1.0], 10) == 0.0
    assert chance_to_lead([1.0, 1.0], 10) == 1.0
    assert chance_to_lead([-1.0, 1.0], 10) == pytest.approx(0.5)
    assert chance_to_lead([-2.0, 1.0, 0.5], 3) == 0.0  # all are seen: no doubt is left
    assert chance_to_lead([-2.0, 1.5, 0.8], 3) == 1.0


def test_a_clearly_worse_trial_stops_with_the_paired_estimate() -> None:
    worse = {prompt: BEST[prompt] - 2 + 0.1 * (-1) ** prompt for prompt in (1, 4, 6, 9)}
    expected = np.mean(list(BEST.values())) - 2
    assert stopping.estimate(worse, BEST, 0.05) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    "values",
    [
        {prompt: BEST[prompt] - 2 for prompt in (1, 4, 6)},  # too few prompts
        {prompt: BEST[prompt] + 1 for prompt in (1, 4, 6, 9)},  # it leads
        {1: BEST[1] - 2, 4: BEST[4] + 1, 6: BEST[6] - 1, 9: BEST[9] + 1},  # it may yet
        {prompt: value - 2 for prompt, value in BEST.items()},  # nothing is left to save
    ],
)
def test_what_goes_on(values: dict[int, float]) -> None:
    assert stopping.estimate(values, BEST, 0.05) is None


def test_the_order_is_random_and_always_the_same() -> None:
    orders = [stopping.order(0, slot, 20) for slot in range(1, 6)]
    assert len(set(orders)) == 5
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert stopping.order(0, 1, 20) == orders[0]
    assert stopping.order(1, 1, 20) != orders[0]


def stored(folder: Path, url: str | None = None, **changes: Unpack[fakes.Changes]) -> StoredStudy:
    settings = fakes.Changes(trials=20, stop_below=0.05) | changes
    storage = Storage(url or f"sqlite:///{folder}/qsched.db")
    return studies.create(storage, fakes.study(folder, **settings))


def worker(study: StoredStudy, generator: fakes.FakeGenerator | None = None) -> Worker:
    made = generator or fakes.FakeGenerator()
    evaluator = Evaluator(made, fakes.FakeScorers(), study.definition.calibration)
    return Worker(study, evaluator, lease=2.0)


def record(study: StoredStudy) -> list[tuple[str, tuple[float, ...] | None, float | None]]:
    return [(slot.state, slot.vector, slot.value) for slot in study.slots()]


def test_stopped_trials_count_save_images_and_are_never_the_best(tmp_path: Path, url: str) -> None:
    study = stored(tmp_path, url)
    generator = fakes.FakeGenerator()
    assert worker(study, generator).run()
    status = study.status()
    assert (status.done, status.waiting, status.parked) == (20, 0, 0)
    assert 5 < status.stopped < 20
    assert status.images == len(generator.made) == 20 * 6 - 2 * status.stopped
    assert status.best is not None
    best = study.slots()[status.best.slot]
    assert best.state == "finished"
    assert len(study.term_scores(best.number)["demo-quality"]) == 6
    for slot in study.slots():
        prompts = len(study.term_scores(slot.number)["demo-quality"])
        assert prompts == (4 if slot.state == "stopped" else 6)
        assert slot.value is not None
        assert slot.value <= status.best.value


def test_the_estimate_is_what_the_trial_would_have_come_to(tmp_path: Path) -> None:
    """The fake objective differs between two trials by the same amount on every prompt."""
    study = stored(tmp_path)
    worker(study).run()
    prompts = study.definition.calibration
    stopped = [slot for slot in study.slots() if slot.state == "stopped"]
    assert stopped
    for slot in stopped:
        images = fakes.FakeGenerator().generate(prompts, study.coefficients(slot.vector or ()))
        whole = study.objective().value(fakes.FakeScorers().score(images, prompts))
        assert slot.value == pytest.approx(whole, abs=1e-5)


def test_optuna_sees_a_pruned_trial_with_its_estimate(tmp_path: Path, url: str) -> None:
    study = stored(tmp_path, url)
    worker(study).run()
    stopped = {slot.number: slot.value for slot in study.slots() if slot.state == "stopped"}
    pruned = {
        trial.user_attrs["slot"]: trial.user_attrs["estimate"]
        for trial in study.trials.study.get_trials(states=[TrialState.PRUNED])
    }
    assert pruned == stopped
    best = study.best()
    assert best is not None
    assert study.trials.study.best_trial.user_attrs["slot"] == best.slot


@pytest.mark.parametrize("write", ["prune", "finish"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_crash_around_stopping_is_repaired(tmp_path: Path, write: str, moment: str) -> None:
    undisturbed = stored(tmp_path / "undisturbed")
    worker(undisturbed).run()
    study = stored(tmp_path / "crashed")
    owner = study.trials if write == "prune" else study.queue
    original = getattr(owner, write)

    def dying(*arguments: object, **keywords: object) -> None:
        stops = write == "prune" or keywords.get("stopped")
        if stops and moment == "before":
            raise KeyboardInterrupt
        original(*arguments, **keywords)
        if stops:
            raise KeyboardInterrupt

    setattr(owner, write, dying)
    with pytest.raises(KeyboardInterrupt):
        worker(study).run()
    setattr(owner, write, original)
    assert worker(study).run()
    assert record(study) == record(undisturbed)
    states = [trial.state for trial in study.trials.study.get_trials()]
    assert len(states) == 20
    assert states.count(TrialState.PRUNED) == study.status().stopped


def test_a_prior_takes_from_vectors_far_from_the_identity(tmp_path: Path) -> None:
    plain = stored(tmp_path / "plain", stop_below=0.0)
    pulled = stored(tmp_path / "pulled", stop_below=0.0, prior=2.0)
    bounds = plain.definition.bounds
    assert pulled.penalty((1.0, 1.0)) == 0.0
    assert pulled.penalty((bounds.high, bounds.low)) == pytest.approx(2.0)
    assert pulled.penalty((bounds.high, 1.0)) == pytest.approx(1.0)
    assert pulled.penalty((1 + (bounds.high - 1) / 2, 1.0)) == pytest.approx(0.25)
    assert plain.penalty((bounds.high, bounds.low)) == 0.0
    worker(plain).run()
    worker(pulled).run()
    zero, *others = pulled.slots()
    assert zero.value == plain.slots()[0].value
    scores = pulled.queue.scores(others[0].number)
    vector = others[0].vector or ()
    without = pulled.objective().value(pulled._terms(scores))
    assert others[0].value == pytest.approx(without - pulled.penalty(vector))

    def distance(study: StoredStudy) -> float:
        best = study.best()
        assert best is not None
        return math.dist(best.coefficients.model + best.coefficients.sample, (1.0,) * 8)

    assert distance(pulled) < distance(plain)
