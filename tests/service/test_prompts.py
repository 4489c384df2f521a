"""Trials of a few prompts in the service: shared batches, exact budgets, and repairs."""

import os
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from qsched.errors import GenerationError
from qsched.search.gauge import Gauge
from qsched.service import stored_study as studies
from qsched.service.database import Database
from qsched.service.evaluator import Evaluator
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.worker import Worker
from tests.support import fakes
from tests.support.processes import FORKED

TRIALS = 16
POOL = 6
DIED = 9


def stored(folder: Path, url: str) -> StoredStudy:
    study = fakes.study(folder, sampler="prompts", trials=TRIALS, preset="standardised")
    search = study.tables.search.model_copy(update={"prompts_per_trial": 2})
    execution = study.tables.execution.model_copy(update={"batch_size": 4})
    changes = {"search": search, "execution": execution}
    return studies.create(Storage(url), study.with_tables(changes))


def worker(study: StoredStudy, generator: fakes.FakeGenerator | None = None) -> Worker:
    """With room for two trials in a batch."""
    made = generator or fakes.FakeGenerator(batch_size=4)
    evaluator = Evaluator(made, fakes.FakeScorers(), study.definition.calibration)
    return Worker(study, evaluator, lease=2.0, poll=0.2)


def record(study: StoredStudy) -> list[tuple[Any, ...]]:
    """What must not depend on how the study was worked."""
    return [(s.number, s.state, s.vector, s.prompts, s.origin, s.value) for s in study.slots()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    study = stored(folder, f"sqlite:///{folder}/q.db")
    assert worker(study).run()
    return record(study)


def test_a_whole_search(url: str, tmp_path: Path, undisturbed: list[tuple[Any, ...]]) -> None:
    study, generator = stored(tmp_path, url), fakes.FakeGenerator(batch_size=4)
    assert worker(study, generator).run()
    assert record(study) == undisturbed
    plan, slots = study.definition.plan, study.slots()
    assert plan is not None
    assert plan.last(TRIALS) == (3, 3, 6)
    assert [len(slot.prompts or range(POOL)) for slot in slots] == [6, *[2] * 12, 3, 3, 6]
    assert [slot.number for slot in slots if slot.state == "finished"] == [0, 15]
    best = study.best()
    assert best is not None
    assert best.slot == 15
    assert len(study.term_scores(15)["demo-quality"]) == POOL
    assert study.gauge is not None
    assert study.gauge.direction
    # Nothing is made twice: a vector that goes on has what it had.
    assert len(generator.made) == len(set(generator.made)) == plan.images(TRIALS)
    assert study.status().images == plan.images(TRIALS) + study.gauge.images


def test_optuna_never_takes_an_estimate_for_a_value(url: str, tmp_path: Path) -> None:
    study = stored(tmp_path, url)
    assert worker(study).run()
    trials = study.trials.all()
    assert [trial.user_attrs["slot"] for trial in trials] == list(range(TRIALS))
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert [trial.user_attrs["slot"] for trial in complete] == [0, 15]
    assert complete[1].value == pytest.approx(study.slots()[15].value)
    assert complete[1].user_attrs["goes on from slot"] == study.slots()[15].origin
    for trial, slot in zip(trials[1:15], study.slots()[1:15], strict=True):
        assert trial.state == TrialState.PRUNED
        assert trial.user_attrs["estimate"] == slot.value
        assert trial.user_attrs["prompts"] == len(slot.prompts or ())
        assert trial.intermediate_values == {len(slot.prompts or ()): slot.value}
    assert study.trials.study.best_trial.user_attrs["slot"] in (0, 15)


@pytest.mark.parametrize("batches", [2, 3, 5])
def test_stopped_and_resumed_equals_undisturbed(
    tmp_path: Path, undisturbed: list[tuple[Any, ...]], batches: int
) -> None:
    study = stored(tmp_path, f"sqlite:///{tmp_path}/q.db")
    generator = fakes.FakeGenerator(batch_size=4)
    for _ in range(60):
        working, left = worker(study, generator), batches

        def stop_after(slot: int, scored: int, of: int) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                working.interrupts.asked = True  # noqa: B023 - called in this iteration

        working.on_batch = stop_after
        if working.run():
            break
    assert record(study) == undisturbed
    assert len(generator.made) == len(set(generator.made))


def work_and_die(folder: Path, url: str, write: str, moment: str, call: int) -> None:
    """A worker whose process ends without a word before or after a call of `write`."""
    torch.set_num_threads(1)
    study = stored(folder, url)
    owner: Any = study.trials if write in ("make", "prune", "complete") else study.queue
    owner = study.storage if write == "keep_gauge" else owner
    original, calls = getattr(owner, write), 0

    def dying(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and moment == "before":
            os._exit(DIED)
        result = original(*arguments, **keywords)
        if calls == call:
            os._exit(DIED)
        return result

    setattr(owner, write, dying)
    worker(study).run()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("write", "call"),
    [
        ("keep_gauge", 1),
        ("begin", 5),
        ("record", 6),
        ("prune", 4),
        ("prune", 14),
        ("finish", 14),
    ],
)
def test_death_at_every_write_is_repaired(
    tmp_path: Path, undisturbed: list[tuple[Any, ...]], write: str, call: int, moment: str
) -> None:
    url = f"sqlite:///{tmp_path}/q.db"
    process = FORKED.Process(target=work_and_die, args=(tmp_path, url, write, moment, call))
    process.start()
    process.join()
    assert process.exitcode == DIED
    study = stored(tmp_path, url)
    assert worker(study).run()
    # Who went on alone proposed without the one beside it: budgets and prompts are what is exact.
    assert [row[:2] for row in record(study)] == [row[:2] for row in undisturbed]
    plan, slots = study.definition.plan, study.slots()
    assert plan is not None
    assert study.gauge is not None
    assert study.status().images == plan.images(TRIALS) + study.gauge.images
    for slot in slots:
        scored = {score.prompt for score in study.queue.scores(slot.number)}
        assert scored == set(range(POOL) if slot.prompts is None else slot.prompts)
    ended = [t for t in study.trials.all() if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert sorted(trial.user_attrs["slot"] for trial in ended) == list(range(TRIALS))
    assert {t.state for t in study.trials.all()} <= {
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    }


def test_what_fails_in_a_shared_batch_fails_its_own_trial(tmp_path: Path) -> None:
    """The others of the batch are scored alone, and lose nothing."""
    study = stored(tmp_path, f"sqlite:///{tmp_path}/q.db")
    assert worker(study).run(max_trials=1)

    class Breaking(fakes.FakeGenerator):
        def generate(self, prompts: Any, coefficients: Any) -> torch.Tensor:
            first = fakes.paired(prompts, coefficients)[0][1]
            if broken in [own for _, own in fakes.paired(prompts, coefficients)]:
                raise GenerationError(f"not finite under {first}")
            return super().generate(prompts, coefficients)

    broken = study.coefficients(study.propose(1).vector)
    assert worker(study, Breaking(batch_size=4)).run(max_trials=2)
    slots = study.slots()
    assert (slots[1].state, slots[1].failures) == ("waiting", 1)
    assert slots[2].state == "stopped"
    assert worker(study).run()
    assert study.status().done == TRIALS


def test_a_slot_lost_from_a_shared_batch_is_the_only_one_lost(tmp_path: Path) -> None:
    study = stored(tmp_path, f"sqlite:///{tmp_path}/q.db")
    assert worker(study).run(max_trials=1)
    slow = worker(study)
    claimed: list[int] = []

    def steal(slot: Any, trial_vector: Any) -> int:
        if not claimed and slot.number == 2:
            session_slot = study.queue.slot(1)
            study.queue.release(session_slot)
            taken = study.queue.claim("thief", 60)
            assert taken is not None
            claimed.append(taken.number)
        return original(slot, trial_vector)

    original = study.trials.make
    study.trials.make = steal  # type: ignore[method-assign, assignment]
    assert slow.run_one() == 2
    states = [slot.state for slot in study.slots()[:3]]
    assert claimed == [1]
    assert states == ["finished", "running", "stopped"]
    assert study.slots()[1].worker == "thief"


def test_the_rounds_of_the_last_trials_wait_for_each_other(tmp_path: Path) -> None:
    study = stored(tmp_path, f"sqlite:///{tmp_path}/q.db")
    assert study.barriers(TRIALS) == (1, 13, 15)
    assert worker(study).run(max_trials=12)  # slot 12 is left
    claim = study.queue.claim
    twelfth = claim("a", 60, barriers=study.barriers)
    assert twelfth is not None
    assert twelfth.number == 12
    assert claim("b", 60, barriers=study.barriers) is None


def test_a_deleted_mirror_comes_back_whole(tmp_path: Path, url: str) -> None:
    study = stored(tmp_path, url)
    assert worker(study).run()
    optuna.delete_study(study_name="fake", storage=Database(url).optuna)
    before = [(slot.state, slot.value) for slot in study.slots()]
    study.tidy()
    trials = study.trials.all()
    assert [(slot.state, slot.value) for slot in study.slots()] == before
    assert [t.user_attrs.get("estimate", t.value) for t in trials] == [v for _, v in before]
    assert trials[15].user_attrs["demo-quality"] == pytest.approx(
        sum(study.term_scores(15)["demo-quality"]) / POOL
    )


def test_an_extended_search_goes_on_and_ends_anew(tmp_path: Path) -> None:
    study = stored(tmp_path, f"sqlite:///{tmp_path}/q.db")
    assert worker(study).run()
    study.extend("+8")
    assert worker(study).run()
    finished = [slot for slot in study.slots() if slot.state == "finished"]
    assert [slot.number for slot in finished] == [0, 15, 23]
    assert len({slot.vector for slot in finished}) == 3


def test_an_enqueued_trial_gets_the_slots_prompts(tmp_path: Path, url: str) -> None:
    study = stored(tmp_path, url)
    assert worker(study).run(max_trials=1)
    study.trials.study.enqueue_trial({"c_eps_first": 1.1, "c_x_first": 0.9})
    assert worker(study).run(max_trials=1)
    slot = study.slots()[1]
    assert (slot.vector, len(slot.prompts or ())) == ((1.1, 0.9), 2)
    assert slot.state == "stopped"


def test_a_gauge_is_stored_once(tmp_path: Path, url: str) -> None:
    study, late = stored(tmp_path, url), stored(tmp_path, url)
    first = Gauge((0.6, 0.8), 0.5, 1.0, images=16, network_calls=48)
    assert study.keep_gauge(first) == first
    assert late.keep_gauge(Gauge((), 0.0, 0.0)) == first
    assert late.gauge == first
