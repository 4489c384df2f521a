"""A worker's iteration: exact budgets, interrupts that lose nothing, failures with a name."""

import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fakes
from qsched import study as studies
from qsched.errors import StudyError
from qsched.objective import Evaluator
from qsched.schema import Slot
from qsched.storage import Storage
from qsched.study import StoredStudy
from qsched.worker import Worker


def stored(folder: Path, **changes: object) -> StoredStudy:
    return studies.create(Storage(f"sqlite:///{folder}/qsched.db"), fakes.study(folder, **changes))


def worker(study: StoredStudy, generator: fakes.FakeGenerator | None = None) -> Worker:
    made = generator or fakes.FakeGenerator()
    evaluator = Evaluator(made, fakes.FakeScorers(), study.definition.calibration)  # type: ignore[arg-type]
    return Worker(study, evaluator)


def record(study: StoredStudy) -> list[tuple[int, tuple[float, ...] | None, float | None]]:
    """What must not depend on how the study was worked."""
    return [(slot.number, slot.vector, slot.value) for slot in study.slots()]


@pytest.fixture
def undisturbed(tmp_path: Path) -> list[tuple[int, tuple[float, ...] | None, float | None]]:
    study = stored(tmp_path / "undisturbed", trials=14)
    assert worker(study).run()
    return record(study)


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
    trials = study.optuna().get_trials()
    assert [trial.user_attrs["slot"] for trial in trials] == list(range(6))
    assert [trial.value for trial in trials] == [slot.value for slot in study.slots()]
    assert trials[0].params == {"c_eps_first": 1.0, "c_x_first": 1.0}
    assert study.optuna().metric_names == ["JAQ"]


@pytest.mark.parametrize("batches", [1, 2, 3, 4, 5, 7, 20])
def test_stopped_and_resumed_equals_undisturbed(
    tmp_path: Path,
    undisturbed: list[tuple[int, tuple[float, ...] | None, float | None]],
    batches: int,
) -> None:
    study = stored(tmp_path, trials=14)
    first, generator = None, fakes.FakeGenerator()
    for _ in range(100):
        first = worker(study, generator)
        left = batches

        def stop_after(slot: int, scored: int) -> None:
            nonlocal left
            left -= 1
            first.stopping = first.stopping or left <= 0  # noqa: B023 - called in this iteration

        first.on_batch = stop_after
        if first.run():
            break
    assert record(study) == undisturbed
    assert len(generator.made) == 14 * 6  # no image twice


def test_a_crash_repeats_at_most_the_batch_in_hand(
    tmp_path: Path, undisturbed: list[tuple[int, tuple[float, ...] | None, float | None]]
) -> None:
    study = stored(tmp_path, trials=14)
    generator = fakes.FakeGenerator()
    crashing = worker(study, generator)
    score = crashing.evaluator.scorers.score
    calls = 0

    def crash(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise RuntimeError("out of the blue")
        return score(*arguments)  # type: ignore[arg-type]

    crashing.evaluator.scorers.score = crash  # type: ignore[method-assign,assignment]
    with pytest.raises(RuntimeError):
        crashing.run()
    assert len(study.term_scores(2)["demo-quality"]) == 2
    worker(study, generator).run()
    assert record(study) == undisturbed
    assert len(generator.made) == 14 * 6 + 2


WRITES = ["claim", "begin", "record", "finish"]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("write", [*WRITES, "publish"])
def test_death_at_every_write_is_repaired(
    tmp_path: Path,
    undisturbed: list[tuple[int, tuple[float, ...] | None, float | None]],
    write: str,
    moment: str,
) -> None:
    """A real process dies (os._exit) around the third call of each write; the next goes on."""
    program = textwrap.dedent(f"""
        import os, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_worker import stored, worker
        study = stored(Path({str(tmp_path)!r}), trials=14)
        owner = study if {write!r} == "publish" else study.storage
        original, calls = getattr(owner, {write!r}), 0
        def dying(*arguments, **keywords):
            global calls
            calls += 1
            if calls == 3 and {moment!r} == "before":
                os._exit(9)
            result = original(*arguments, **keywords)
            if calls == 3:
                os._exit(9)
            return result
        setattr(owner, {write!r}, dying)
        worker(study).run()
    """)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    died = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert died.returncode == 9
    study = stored(tmp_path, trials=14)
    assert worker(study).run()
    assert record(study) == undisturbed
    assert len(study.optuna().get_trials()) == 14
    assert study.status().images == 14 * 6


def test_sigint_sets_a_flag_and_the_batch_in_hand_is_kept(tmp_path: Path) -> None:
    study = stored(tmp_path)
    interrupted = worker(study)
    batches = 0

    def interrupt(slot: int, scored: int) -> None:
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
    with pytest.raises(StudyError, match="identity schedule failed 3 times: the image of 'a'"):
        worker(study, generator).run()
    assert study.status().running == 0


def test_a_study_of_another_living_process_is_refused(tmp_path: Path) -> None:
    study = stored(tmp_path)
    host = os.uname().nodename
    study.storage.claim(study.name, f"{host}:{os.getppid()}")
    with pytest.raises(StudyError, match=f"process {host}:{os.getppid()}"):
        worker(study).run()


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
    with pytest.raises(StudyError, match="has 7 trials; a budget of 4"):
        studies.create(study.storage, fakes.study(tmp_path, trials=4))


def test_an_unknown_study_names_those_that_exist(tmp_path: Path) -> None:
    study = stored(tmp_path)
    assert studies.load(study.storage, "fake").definition == study.definition
    with pytest.raises(StudyError, match="there: fake"):
        studies.load(study.storage, "other")


def test_slot_states_are_values(tmp_path: Path) -> None:
    slot = stored(tmp_path).slots()[0]
    assert slot == Slot(0, "waiting", 0, None, None, None, None)
