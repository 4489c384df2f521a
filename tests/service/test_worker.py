"""A worker's iteration: exact budgets, interrupts that lose nothing, failures with a name."""

import math
import os
import signal
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, Unpack

import pytest
import sqlalchemy as sa
import torch
from optuna.trial import TrialState

from qsched import api
from qsched.errors import StudyError
from qsched.pipelines import self_test
from qsched.prompts import Prompt
from qsched.service import stored_study as studies
from qsched.service.evaluator import Evaluator
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.worker import Worker
from tests.support import fakes
from tests.support.processes import FORKED

TRIALS = 8
"""Of a study that is disturbed: a few after each disturbance."""


def stored(folder: Path, url: str | None = None, **changes: Unpack[fakes.Changes]) -> StoredStudy:
    storage = Storage(url or f"sqlite:///{folder}/qsched.db")
    return studies.create(storage, fakes.study(folder, **changes))


def worker(study: StoredStudy, generator: fakes.FakeGenerator | None = None) -> Worker:
    made = generator or fakes.FakeGenerator()
    evaluator = Evaluator(made, fakes.FakeScorers(), study.definition.calibration)
    return Worker(study, evaluator, lease=2.0, poll=0.2)


def record(study: StoredStudy) -> list[tuple[int, tuple[float, ...] | None, float | None]]:
    """What must not depend on how the study was worked."""
    return [(slot.number, slot.vector, slot.value) for slot in study.slots()]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory,
) -> list[tuple[int, tuple[float, ...] | None, float | None]]:
    study = stored(tmp_path_factory.mktemp("undisturbed"), trials=TRIALS)
    assert worker(study).run()
    return record(study)


def test_what_is_measured_is_a_number_of_each_trial(tmp_path: Path) -> None:
    study = stored(tmp_path)
    readings = [1.5, 2.5, 3.5, 4.5, 5.5, 6.5]
    evaluator = Evaluator(
        fakes.FakeGenerator(),
        fakes.FakeScorers(),
        study.definition.calibration,
        measures={"peak_memory_gb": iter(readings).__next__, "volume": lambda: 11},
    )
    assert Worker(study, evaluator).run()
    trials = study.trials.study.get_trials()
    assert [trial.user_attrs["peak_memory_gb"] for trial in trials] == readings
    assert {trial.user_attrs["volume"] for trial in trials} == {11}


def test_a_run_spends_exactly_its_budget(tmp_path: Path) -> None:
    study = stored(tmp_path)
    generator = fakes.FakeGenerator()
    assert worker(study, generator).run()
    status = study.status()
    assert (status.done, status.waiting, status.running, status.parked) == (6, 0, 0, 0)
    assert status.images == len(generator.made) == 6 * 6
    assert worker(study, generator).run()
    assert len(generator.made) == 6 * 6


def test_trial_0_is_the_identity_and_the_best_is_the_maximum(tmp_path: Path) -> None:
    study = stored(tmp_path, trials=20)
    worker(study).run()
    status = study.status()
    assert status.identity is not None
    assert status.identity.coefficients.is_identity
    assert status.best is not None
    assert status.best.value == max(slot.value or -math.inf for slot in study.slots())
    assert status.best.value > status.identity.value


def test_a_value_is_jaq_of_the_stored_scores(tmp_path: Path) -> None:
    study = stored(tmp_path, preset="standardised")
    worker(study).run()
    assert study.slots()[0].value == pytest.approx(0.0)
    scores = study.term_scores(3)
    expected = study.objective().value(scores)
    assert study.slots()[3].value == expected != 0
    assert all(len(values) == 6 for values in scores.values())


def test_optuna_knows_every_trial(tmp_path: Path) -> None:
    study = stored(tmp_path)
    worker(study).run()
    trials = study.trials.study.get_trials()
    assert [trial.user_attrs["slot"] for trial in trials] == list(range(6))
    assert [trial.value for trial in trials] == [slot.value for slot in study.slots()]
    assert trials[0].params == {"c_eps_first": 1.0, "c_x_first": 1.0}
    assert study.trials.study.metric_names == ["JAQ"]


@pytest.mark.parametrize("batches", [1, 2, 3, 4, 5, 7, 20])
def test_stopped_and_resumed_equals_undisturbed(
    tmp_path: Path,
    undisturbed: list[tuple[int, tuple[float, ...] | None, float | None]],
    batches: int,
) -> None:
    study = stored(tmp_path, trials=TRIALS)
    first, generator = None, fakes.FakeGenerator()
    for _ in range(100):
        first = worker(study, generator)
        left = batches

        def stop_after(slot: int, scored: int, of: int) -> None:
            nonlocal left
            left -= 1
            first.interrupts.asked = first.interrupts.asked or left <= 0  # noqa: B023 - called in this iteration

        first.on_batch = stop_after
        if first.run():
            break
    assert record(study) == undisturbed
    assert len(generator.made) == TRIALS * 6  # no image twice


class CrashingScorers(fakes.FakeScorers):
    """Break at one of their calls."""

    def __init__(self, fatal: int) -> None:
        self.calls, self.fatal = 0, fatal

    def score(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> dict[str, list[float]]:
        self.calls += 1
        if self.calls == self.fatal:
            raise RuntimeError("out of the blue")
        return super().score(images, prompts)


def test_a_crash_repeats_at_most_the_batch_in_hand(
    tmp_path: Path, undisturbed: list[tuple[int, tuple[float, ...] | None, float | None]]
) -> None:
    study = stored(tmp_path, trials=TRIALS)
    generator, prompts = fakes.FakeGenerator(), study.definition.calibration
    crashing = Worker(study, Evaluator(generator, CrashingScorers(8), prompts))
    with pytest.raises(RuntimeError):
        crashing.run()
    assert len(study.term_scores(2)["demo-quality"]) == 2
    worker(study, generator).run()
    assert record(study) == undisturbed
    assert len(generator.made) == TRIALS * 6 + 2


WRITES = {
    "claim": "study.queue",
    "make": "study.trials",
    "begin": "study.queue",
    "record": "study.queue",
    "report": "study.trials",
    "renew": "study.queue",
    "complete": "study.trials",
    "finish": "study.queue",
}


DIED = 9
ORPHANING = {("make", "after"), ("begin", "before")}  # a trial that no slot came to know


def work_and_die(folder: Path, url: str, write: str, moment: str) -> None:
    """A worker whose process ends without a word before or after the third call of `write`."""
    torch.set_num_threads(1)
    study = stored(folder, url, trials=TRIALS)
    owner = {"study.queue": study.queue, "study.trials": study.trials}[WRITES[write]]
    original, calls = getattr(owner, write), 0

    def dying(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3 and moment == "before":
            os._exit(DIED)
        result = original(*arguments, **keywords)
        if calls == 3:
            os._exit(DIED)
        return result

    setattr(owner, write, dying)
    dead = worker(study)
    if write == "renew":  # which goes by the clock
        dead.on_batch = lambda slot, scored, of: time.sleep(30)
    dead.run()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("write", WRITES)
def test_death_at_every_write_is_repaired(
    tmp_path: Path,
    url: str,
    undisturbed: list[tuple[int, tuple[float, ...] | None, float | None]],
    write: str,
    moment: str,
) -> None:
    """A real process dies (os._exit) around the third call of each write; the next goes on."""
    process = FORKED.Process(target=work_and_die, args=(tmp_path, url, write, moment))
    process.start()
    process.join()
    assert process.exitcode == DIED
    study = stored(tmp_path, url, trials=TRIALS)
    assert worker(study).run()
    assert record(study) == undisturbed
    assert study.status().images == TRIALS * 6
    trials = study.trials.study.get_trials()
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert [trial.value for trial in complete] == [slot.value for slot in study.slots()]
    orphans = [trial.state for trial in trials if trial not in complete]
    assert orphans == ([TrialState.FAIL] if (write, moment) in ORPHANING else [])


def test_sigint_sets_a_flag_and_the_batch_in_hand_is_kept(tmp_path: Path) -> None:
    study = stored(tmp_path)
    interrupted = worker(study)
    batches = 0

    def interrupt(slot: int, scored: int, of: int) -> None:
        nonlocal batches
        batches += 1
        if batches == 4:
            os.kill(os.getpid(), signal.SIGINT)

    interrupted.on_batch = interrupt
    before = signal.getsignal(signal.SIGINT)
    assert not interrupted.run()
    assert signal.getsignal(signal.SIGINT) is before
    assert [slot.state for slot in study.slots()[:3]] == ["finished", "waiting", "waiting"]
    assert study.status().images == 8
    assert study.slots()[1].vector is not None


class Finalized:
    """Something whose end is told to a callback, out of which Python lets no exception."""


def test_an_interrupt_that_python_drops_is_raised_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    interrupted = worker(stored(tmp_path))

    def twice(reference: object) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)

    def interrupt(slot: int, scored: int, of: int) -> None:
        watched = Finalized()
        reference = weakref.ref(watched, twice)
        del watched
        time.sleep(10)
        assert reference() is None

    interrupted.on_batch = interrupt
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    assert time.monotonic() - began < 10  # the sleep of the batch was cut short
    assert interrupted.study.status().running == 0
    assert "Traceback" not in capfd.readouterr().err


def test_a_failing_prompt_parks_the_slot_with_its_name(tmp_path: Path) -> None:
    study = stored(tmp_path)
    generator = fakes.FakeGenerator()
    failing = worker(study, generator)
    assert failing.run_one()
    generator.broken = {"e"}
    for _ in range(3):
        assert failing.run_one()
    generator.broken = set()
    assert failing.run()
    status = study.status()
    assert (status.done, status.parked) == (5, 1)
    assert status.reasons == ((1, "the image of 'e' is not finite"),)
    assert len(study.term_scores(1)["demo-quality"]) == 4  # two good batches are kept


def test_without_the_identity_there_is_no_study(tmp_path: Path) -> None:
    study = stored(tmp_path, preset="standardised")
    generator = fakes.FakeGenerator()
    generator.broken = {"a"}
    with pytest.raises(StudyError, match="identity schedule failed: the image of 'a'"):
        worker(study, generator).run()
    assert study.status().running == 0


def test_other_hardware_is_refused_unless_the_study_allows_it(tmp_path: Path) -> None:
    study = stored(tmp_path)
    first, other = worker(study), worker(study)
    first.hardware = {"device": "cuda A", "torch": "2.10"}
    other.hardware = {"device": "cuda B", "torch": "2.10"}
    assert first.run(max_trials=1)
    with pytest.raises(StudyError, match="device: the study has 'cuda A', here it is 'cuda B'"):
        other.run()
    tables = study.definition.tables
    mixed = tables.model_copy(
        update={"execution": tables.execution.model_copy(update={"allow_mixed_hardware": True})}
    )
    study.definition = replace(study.definition, tables=mixed)
    assert other.run()
    assert [row.state for row in study.status().workers] == ["stopped", "stopped"]


def test_a_worker_starts_with_what_another_ones_self_test_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the same fingerprint and on the same hardware, also in another study."""
    url = f"sqlite:///{tmp_path}/q.db"
    tests: list[int] = []

    def counted(*arguments: Any, **keywords: Any) -> self_test.SelfTest:
        tests.append(1)
        return self_test.self_test(*arguments, **keywords)

    monkeypatch.setattr("qsched.pipelines.generator.self_test", counted)
    monkeypatch.setattr(Worker, "run", lambda worker, **_: True)
    for name, known in (("one", 1), ("other", 1), ("one", 1)):
        api.work(stored(tmp_path, url, name=name))
        assert len(tests) == known, name
    api.work(stored(tmp_path, url, name="seeded", seed=5))
    assert len(tests) == 2
    with Storage(url).database.engine.begin() as connection:
        connection.execute(sa.text("""UPDATE qsched_self_tests SET result = '{"caches": 5}'"""))
    api.work(stored(tmp_path, url, name="one"))
    assert len(tests) == 3


def test_several_workers_share_the_budget(tmp_path: Path) -> None:
    """Threads stand for processes here; tests/service/test_service.py has real ones."""
    study = stored(tmp_path, trials=12)
    workers = [worker(stored(tmp_path, trials=12)) for _ in range(3)]
    assert workers[0].run(max_trials=1)
    turns = cycle(workers)
    while next(turns).run_one():
        pass
    assert study.status().done == 12
    assert study.status().images == 12 * 6


def test_a_worker_waits_for_what_others_hold(tmp_path: Path) -> None:
    study = stored(tmp_path, trials=3)
    held = study.queue.claim("dead", 3.0)
    waits = 0

    def count() -> None:
        nonlocal waits
        waits += 1

    waiting = worker(study)
    waiting.on_wait = count
    assert waiting.run()
    assert waits > 0
    assert held is not None
    assert study.queue.slot(held.number).attempt == 2
    assert study.status().done == 3


def test_out_of_memory_halves_the_batch_and_says_so(tmp_path: Path) -> None:
    study = stored(tmp_path)
    generator = fakes.FakeGenerator()
    generator.room = 1
    assert worker(study, generator).run()
    assert generator.batch_size == 1
    assert study.status().done == 6
    trials = study.trials.study.get_trials()
    assert [trial.user_attrs["batch_size"] for trial in trials] == [1] * 6


def test_a_paused_study_waits(tmp_path: Path) -> None:
    study = stored(tmp_path)
    study.storage.pause(study.incarnation, True)
    paused = worker(study)
    paused.on_wait = lambda: study.storage.pause(study.incarnation, False)
    assert paused.run()
    assert study.status().done == 6


def test_a_parked_slot_is_retried_as_a_new_trial(tmp_path: Path) -> None:
    study = stored(tmp_path)
    generator = fakes.FakeGenerator()
    generator.broken = {"e"}
    failing = worker(study, generator)
    for _ in range(3):
        assert failing.run_one()
    study.tidy()
    vector = study.queue.slot(0).vector
    assert [trial.state for trial in study.trials.study.get_trials()] == [TrialState.FAIL]
    generator.broken = set()
    assert study.retry() == 1
    assert worker(study, generator).run()
    assert study.queue.slot(0).vector == vector
    assert study.status().done == 6
    assert study.status().images == 36


def test_a_budget_is_extended_in_words_and_numbers(tmp_path: Path) -> None:
    study = stored(tmp_path)
    assert study.extend("+4") == 10
    assert study.extend("12") == 12
    with pytest.raises(StudyError, match="has 12 trials already"):
        study.extend("3")
    with pytest.raises(StudyError, match="expected a number such as 62, or"):
        study.extend("many")


def test_a_worker_goes_on_with_a_budget_that_grows(tmp_path: Path) -> None:
    study = stored(tmp_path, trials=2)
    one = worker(study)
    one.on_trial = lambda: study.queue.grow(3)
    assert one.run()
    assert study.status().done == 3


def test_a_differing_key_is_accepted_by_name_and_recorded(tmp_path: Path) -> None:
    study = stored(tmp_path, seed=0)
    changed = fakes.study(tmp_path, seed=5)
    studies.create(study.storage, changed, accept=["search.seed"])
    assert study.status().accepted == {"search.seed": [0, 5]}
    assert studies.create(study.storage, changed).status().fingerprint["search.seed"] == 5


def test_another_fingerprint_is_refused_key_by_key(tmp_path: Path) -> None:
    study = stored(tmp_path, seed=0)
    with pytest.raises(StudyError) as raised:
        studies.create(study.storage, fakes.study(tmp_path, seed=5))
    assert "search.seed: the study has 0, now it is 5" in str(raised.value)
    assert "sampling" not in str(raised.value)


def test_a_budget_may_grow_but_not_shrink(tmp_path: Path) -> None:
    study = stored(tmp_path, trials=4)
    worker(study).run()
    larger = studies.create(study.storage, fakes.study(tmp_path, trials=7))
    worker(larger).run()
    assert larger.status().done == 7
    with pytest.raises(StudyError, match="has 7 trials; a budget of 5"):
        studies.create(study.storage, fakes.study(tmp_path, trials=5))
    as_before = studies.create(study.storage, fakes.study(tmp_path, trials=4))
    assert as_before.status().budget == 7


def test_an_unknown_study_names_those_that_exist(tmp_path: Path) -> None:
    study = stored(tmp_path)
    assert studies.load(study.storage, "fake").definition == study.definition
    with pytest.raises(StudyError, match="there: fake"):
        studies.load(study.storage, "other")
