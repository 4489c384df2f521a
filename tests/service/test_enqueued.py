"""Trials that somebody enqueues in Optuna: each becomes one slot's, or is refused in words."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from qsched.service import stored_study as studies
from qsched.service.evaluator import Evaluator
from qsched.service.schema import Slot
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.worker import Worker
from tests.support import fakes

WANTED = {"c_eps_first": 0.9, "c_x_first": 1.1}


@pytest.fixture
def study(tmp_path: Path, url: str) -> StoredStudy:
    return studies.create(Storage(url), fakes.study(tmp_path))


def worker(study: StoredStudy) -> Worker:
    evaluator = Evaluator(fakes.FakeGenerator(), fakes.FakeScorers(), study.definition.calibration)
    return Worker(study, evaluator, lease=5.0, poll=0.1)


def claimed(study: StoredStudy, name: str) -> Slot:
    slot = study.queue.claim(name, 60)
    assert slot is not None
    return slot


def vectors(study: StoredStudy) -> list[tuple[float, ...] | None]:
    return [slot.vector for slot in study.slots()]


def trials(study: StoredStudy) -> list[FrozenTrial]:
    return study.trials.study.get_trials()


def test_it_becomes_the_next_slots_vector_and_trial(study: StoredStudy) -> None:
    study.trials.study.enqueue_trial(WANTED)
    assert worker(study).run()
    assert vectors(study)[0] == (1.0, 1.0)  # the identity comes first
    assert vectors(study)[1] == (0.9, 1.1)
    assert study.status().done == 6
    assert len(trials(study)) == 6
    first = trials(study)[0]
    assert (first.state, first.params, first.value) == (
        TrialState.COMPLETE,
        WANTED,
        study.slots()[1].value,
    )
    assert (first.user_attrs["slot"], first.user_attrs["attempt"]) == (1, 1)
    assert list(first.intermediate_values) == [2, 4, 6]


def test_one_that_was_added_with_its_distributions_is_no_other(study: StoredStudy) -> None:
    claimed(study, "identity")
    known = study.trials.make(study.slots()[0], (1.0, 1.0))
    distributions = study.storage.database.optuna.get_trial(known).distributions
    study.trials.study.add_trial(
        create_trial(state=TrialState.WAITING, params=WANTED, distributions=distributions)
    )
    assert worker(study).run_one()
    assert vectors(study)[1] == (0.9, 1.1)


REFUSED: dict[str, tuple[Mapping[str, Any], str]] = {
    "outside": ({"c_eps_first": 9.0, "c_x_first": 1.0}, "c_eps_first = 9.0; expected 0.8 to 1.2"),
    "not finite": (
        {"c_eps_first": float("nan"), "c_x_first": 1.0},
        "c_eps_first = nan; expected 0.8 to 1.2",
    ),
    "no number": ({"c_eps_first": "1", "c_x_first": 1.0}, "c_eps_first = '1'; expected 0.8 to 1.2"),
    "others": ({"x": 1.0}, "parameters x; expected c_eps_first, c_x_first"),
    "a part": ({"c_x_first": 1.0}, "parameters c_x_first; expected c_eps_first, c_x_first"),
    "the identity": ({"c_eps_first": 1.0, "c_x_first": 1}, "slot 0 has the same parameters"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_tried_is_failed_with_the_reason(
    tmp_path: Path, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    study = studies.create(Storage(f"sqlite:///{tmp_path}/q.db"), fakes.study(tmp_path, trials=3))
    params, words = REFUSED[why]
    study.trials.study.enqueue_trial(dict(params))
    one = worker(study)
    assert one.run_one()
    assert one.run_one()
    refused, *rest = trials(study)
    assert (refused.state, refused.user_attrs["reason"]) == (TrialState.FAIL, words)
    assert f"enqueued trial 0 is refused: {words}" in caplog.messages
    assert [trial.state for trial in rest] == [TrialState.COMPLETE] * 2
    assert study.status().done == 2


def test_the_same_is_never_tried_twice(study: StoredStudy) -> None:
    for _ in range(2):
        study.trials.study.enqueue_trial(WANTED)
    assert worker(study).run()
    assert vectors(study).count((0.9, 1.1)) == 1
    assert trials(study)[1].user_attrs["reason"] == "slot 1 has the same parameters"
    assert study.status().done == 6


def test_two_workers_take_one_each(study: StoredStudy) -> None:
    """Both have looked before either takes one."""
    other = {"c_eps_first": 1.2, "c_x_first": 0.8}
    for params in (WANTED, other):
        study.trials.study.enqueue_trial(params)
    claimed(study, "identity")
    one, two = claimed(study, "one"), claimed(study, "two")
    seen = study.trials.enqueued()
    late = studies.load(study.storage, study.name)
    late.trials.enqueued = lambda: seen  # type: ignore[method-assign]
    assert study.adopt(one, 60) == replace(one, vector=(0.9, 1.1), trial=seen[0]._trial_id)
    assert late.adopt(two, 60) == replace(two, vector=(1.2, 0.8), trial=seen[1]._trial_id)
    assert [trial.user_attrs["slot"] for trial in trials(study)] == [1, 2]


def test_death_before_it_runs_loses_nothing(study: StoredStudy) -> None:
    """The slot has it, and its worker is gone before Optuna knows."""
    study.trials.study.enqueue_trial(WANTED)
    claimed(study, "identity")
    slot = study.queue.claim("dead", 0.0)
    assert slot is not None
    (enqueued,) = study.trials.enqueued()
    study.queue.adopt(slot, 0.0, vector=(0.9, 1.1), trial=enqueued._trial_id)
    assert trials(study)[0].state == TrialState.WAITING
    study.tidy()
    assert worker(study).run_one()
    assert vectors(study)[1] == (0.9, 1.1)
    adopted = trials(study)[0]
    assert (adopted.state, adopted.params) == (TrialState.COMPLETE, WANTED)
    assert len(trials(study)) == 1
