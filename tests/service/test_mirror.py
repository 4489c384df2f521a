"""What is not ours is not touched; and the mirror comes back where somebody deleted it."""

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import event

from qsched.errors import MirrorLost, NotOurs
from qsched.service import stored_study as studies
from qsched.service.database import Database
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.trials import MARK
from tests.conftest import content, new_database
from tests.support import fakes
from tests.support.fakes import begun, stored, worker


@pytest.fixture
def plain(url: str) -> optuna.Study:
    """Somebody's own study in the same database: a finished trial, one that runs, a metric."""
    storage = Storage(url).database.optuna
    study = optuna.create_study(storage=storage, study_name="fake", direction="maximize")
    study.set_metric_names(["accuracy"])
    study.tell(study.ask(), 0.5)
    study.ask().set_user_attr("slot", 0)
    return study


def test_a_plain_study_of_the_name_is_refused_and_stays_as_it_was(
    url: str, tmp_path: Path, plain: optuna.Study
) -> None:
    before = content(url)
    with pytest.raises(NotOurs, match=r"qsched did not make.* --name, or another database"):
        stored(url, tmp_path)
    assert Storage(url).study_names() == []
    assert content(url) == before


def test_a_study_whose_name_was_taken_says_so_and_touches_nothing(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = stored(url, tmp_path)
    optuna.delete_study(study_name="fake", storage=study.storage.database.optuna)
    other = optuna.create_study(study_name="fake", storage=Database(url).optuna)
    other.ask().set_user_attr("slot", 0)
    before = content(url)["trials"], content(url)["studies"]
    study.tidy()
    assert study.status().waiting == 3
    assert "did not make" in caplog.text
    with pytest.raises(NotOurs):
        worker(study).run()
    study.delete()
    assert (content(url)["trials"], content(url)["studies"]) == before
    assert Storage(url).study_names() == []


def test_neighbours_and_copies_are_left_alone(url: str, tmp_path: Path) -> None:
    """A copy of our study carries our mark, and has another name."""
    study = stored(url, tmp_path)
    begun(study, "w")
    storage = Database(url).optuna
    optuna.copy_study(
        from_study_name="fake", to_study_name="copy", from_storage=storage, to_storage=storage
    )
    copied = optuna.load_study(study_name="copy", storage=storage)
    running = [trial.state for trial in copied.trials]
    study.queue.counts()
    study.storage.delete_study(study.incarnation)
    again = optuna.load_study(study_name="copy", storage=Database(url).optuna)
    assert [trial.state for trial in again.trials] == running
    assert MARK in storage.get_study_system_attrs(copied._study_id)


def test_trials_that_no_worker_made_are_not_swept(url: str, tmp_path: Path) -> None:
    study = stored(url, tmp_path)
    study.trials.study.ask()
    study.tidy()
    assert [trial.state for trial in study.trials.all()] == [TrialState.RUNNING]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_mirror_made_anew_between_the_last_two_writes_ends_too(
    url: str, tmp_path: Path, stopped: bool
) -> None:
    """Optuna's trial was ended, then the mirror was deleted and made anew, then the slot ended."""
    study = stored(url, tmp_path)
    assert worker(study).run(max_trials=1)
    slot = begun(study, "w")
    optuna.delete_study(study_name="fake", storage=Database(url).optuna)
    study.restore()
    study.queue.finish(slot, 0.25, stopped=stopped)
    for _ in range(2):
        assert study.tidy()["stopped" if stopped else "finished"] == 1 + (not stopped)
    ended = study.trials.all()[1]
    assert ended.state == (TrialState.PRUNED if stopped else TrialState.COMPLETE)
    assert ended.user_attrs["estimate"] == 0.25 if stopped else ended.value == 0.25


def test_a_mirror_that_vanishes_while_one_looks_is_not_somebody_elses(
    postgres: str, tmp_path: Path
) -> None:
    url = new_database(postgres)
    study = stored(url, tmp_path)
    left = [lambda: optuna.delete_study(study_name="fake", storage=Database(url).optuna)]

    @event.listens_for(study.storage.database.engine, "after_cursor_execute")
    def looked(connection: object, cursor: object, statement: str, *_: object) -> None:
        if "studies.study_name" in statement and left:
            left.pop()()

    study.restore()
    assert not left
    study.tidy()
    assert study.status().waiting == 3


def test_a_trial_of_a_mirror_that_is_gone_is_not_entered(url: str, tmp_path: Path) -> None:
    """Between its making and its entry in the slot the mirror was deleted and made anew, and its
    number was given to another slot's trial, as SQLite does."""
    study = stored(url, tmp_path)
    assert worker(study).run(max_trials=1)
    slow, quick = study.queue.claim("slow", 60), study.queue.claim("quick", 60)
    assert slow is not None
    assert quick is not None
    vectors = study.propose(slow.number).vector, study.propose(quick.number).vector
    made = study.trials.make(slow, vectors[0])
    optuna.delete_study(study_name="fake", storage=Database(url).optuna)
    study.restore()
    other = stored(url, tmp_path).trials.make(quick, vectors[1])  # by another process
    for trial in (made, other):  # the same number, or one that is not there
        with pytest.raises(MirrorLost):
            study.queue.begin(
                slow,
                60,
                vector=vectors[0],
                trial=trial,
                check=lambda session, trial=trial: study.trials.require(
                    session, slow.number, trial
                ),  # type: ignore[misc]
            )
    study.storage.database.transaction(
        lambda session: study.trials.require(session, quick.number, other)
    )
    for slot in (slow, quick):
        study.queue.release(slot)
    assert worker(study).run()
    assert [t.state for t in study.trials.all()].count(TrialState.COMPLETE) == 3


def record(study: StoredStudy) -> list[tuple[object, ...]]:
    """What optuna-dashboard shows of our trials, but for times."""
    return [
        (
            trial.user_attrs["slot"],
            trial.state,
            trial.params,
            trial.distributions,
            trial.value,
            trial.user_attrs.get("demo-quality"),
            trial.user_attrs.get("reason"),
            trial.user_attrs.get("estimate"),
        )
        for trial in study.trials.all()
    ]


@pytest.mark.parametrize("found_by", ["status", "worker"])
def test_a_mirror_that_somebody_deleted_is_made_anew(
    url: str, tmp_path: Path, found_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    study = stored(url, tmp_path, trials=5)
    assert worker(study).run(max_trials=2)
    slot = begun(study, "parked")
    for _ in range(3):
        study.queue.fail(slot, "it is broken")
        slot = study.queue.claim("parked", 60) or slot
    study.queue.release(slot)
    study.tidy()
    before = record(study)
    assert len(before) >= 3
    optuna.delete_study(study_name="fake", storage=Database(url).optuna)
    fresh = studies.load(Storage(url), "fake")
    if found_by == "status":
        fresh.tidy()
    else:
        worker(fresh).run(max_trials=0)
    assert record(fresh) == before
    assert caplog.text.count("its trials in Optuna were deleted") == 1
    assert fresh.trials.study.metric_names == ["JAQ"]
    assert worker(fresh).run()
    ended = [trial for trial in fresh.trials.all() if trial.state == TrialState.COMPLETE]
    assert {trial.user_attrs["slot"]: trial.value for trial in ended} == {
        slot.number: slot.value for slot in fresh.finished()
    }


def test_a_mirror_that_is_deleted_while_somebody_tidies_is_made_anew(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = stored(url, tmp_path, trials=5)
    slot = study.queue.claim("died before it had begun", 60)
    assert slot
    study.trials.make(slot, study.propose(slot.number).vector)
    study.queue.release(slot)
    counts = study.queue.counts

    def deleted_meanwhile() -> dict[str, int]:
        monkeypatch.undo()
        optuna.delete_study(study_name="fake", storage=Database(url).optuna)
        return counts()

    monkeypatch.setattr(study.queue, "counts", deleted_meanwhile)
    assert study.tidy()["waiting"] == 5
    assert study.trials.all() == []
    assert worker(study).run()


def test_a_worker_goes_on_where_its_mirror_was_deleted_under_it(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = stored(url, tmp_path)
    undisturbed = studies.create(
        Storage(f"sqlite:///{tmp_path}/undisturbed.db"), fakes.study(tmp_path, trials=3)
    )
    assert worker(undisturbed).run()
    working, made = worker(study), fakes.FakeGenerator()
    working.evaluator.generator = made  # type: ignore[attr-defined]

    def delete(slot: int, scored: int, of: int) -> None:
        if (slot, scored) == (1, 4):
            working.on_batch = lambda slot, scored, of: None
            optuna.delete_study(study_name="fake", storage=Database(url).optuna)

    working.on_batch = delete
    assert working.run()
    assert len(made.made) == 3 * 6  # no image twice
    assert record(study) == record(undisturbed)
    assert [slot.value for slot in study.slots()] == [slot.value for slot in undisturbed.slots()]
    assert caplog.text.count("its trials in Optuna were deleted") == 1
