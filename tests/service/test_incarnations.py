"""A name is no study: what slept through `delete` and `create` writes nothing into the new one."""

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from qsched.errors import StudyError, StudyGone
from qsched.service import stored_study as studies
from qsched.service.schema import Score, Slot
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from tests.conftest import content
from tests.support.fakes import begun, stored, worker

SCORE = Score(0, "demo-quality", 9.9, 0.1)


WRITES: dict[str, Callable[[StoredStudy, Slot], object]] = {
    "claim": lambda study, slot: study.queue.claim("old", 60),
    "begin": lambda study, slot: study.queue.begin(slot, 60, vector=[9.0, 9.0], trial=1),
    "record": lambda study, slot: study.queue.record(slot, 60, [SCORE]),
    "renew": lambda study, slot: study.queue.renew(slot, 60),
    "finish": lambda study, slot: study.queue.finish(slot, 9.9),
    "release": lambda study, slot: study.queue.release(slot),
    "fail": lambda study, slot: study.queue.fail(slot, "old"),
    "counts": lambda study, slot: study.queue.counts(),
    "slot": lambda study, slot: study.queue.slot(0),
    "make": lambda study, slot: study.trials.make(slot, [1.0, 1.0]),
    "report": lambda study, slot: study.trials.report(slot, 1, 9.9),
    "attach": lambda study, slot: study.trials.attach(slot, Path(__file__), None),  # type: ignore[arg-type]
    "complete": lambda study, slot: study.trials.complete(slot, 9.9, {"worker": "old"}),
    "prune": lambda study, slot: study.trials.prune(slot, 9.9, {"worker": "old"}),
    "running": lambda study, slot: study.trials.running(),
    "tidy": lambda study, slot: study.tidy(),
    "restore": lambda study, slot: study.restore(),
    "extend": lambda study, slot: study.extend("+5"),
    "retry": lambda study, slot: study.retry(),
    "delete": lambda study, slot: study.delete(),
    "status": lambda study, slot: study.status(),
    "gate": lambda study, slot: study.require_agreement(["search.seed"]),
    "pause": lambda study, slot: study.storage.pause(study.incarnation, True),
    "conclude": lambda study, slot: study.storage.conclude(study.incarnation, {"verdict": "worse"}),
    "enter": lambda study, slot: study.storage.enter(
        study.incarnation, "old", machine="m", host="h", pid=1, hardware={}
    ),
}


def test_a_sleeper_writes_nothing_into_a_new_study_of_the_name(url: str, tmp_path: Path) -> None:
    """Its slot and, on SQLite, Optuna's numbers of its study and trial are the new study's now."""
    old = stored(url, tmp_path)
    slot = begun(old, "old")
    old.storage.delete_study(old.incarnation)
    new = stored(url, tmp_path)
    now = begun(new, "new")
    assert (now.number, now.attempt) == (slot.number, slot.attempt)
    before = content(url)
    for write in WRITES.values():
        with pytest.raises(StudyGone, match="study 'fake' was deleted"):
            write(old, slot)
    old.storage.seen("old", 1, 1.0)
    assert content(url) == before


def test_a_sleeper_without_a_new_study_is_told_the_same(url: str, tmp_path: Path) -> None:
    old = stored(url, tmp_path)
    slot = begun(old, "old")
    old.storage.delete_study(old.incarnation)
    for write in WRITES.values():
        with pytest.raises(StudyGone, match="study 'fake' was deleted"):
            write(old, slot)


@pytest.mark.parametrize("moment", ["scoring", "waiting", "the last write"])
@pytest.mark.parametrize("anew", [False, True])
def test_a_worker_ends_where_its_study_does(
    url: str, tmp_path: Path, moment: str, anew: bool, caplog: pytest.LogCaptureFixture
) -> None:
    study = stored(url, tmp_path)
    working = worker(study)

    def delete(*_: Any) -> None:
        study.storage.delete_study(study.incarnation)
        if anew:
            stored(url, tmp_path)

    if moment == "scoring":
        working.on_batch = delete
    elif moment == "waiting":
        working.on_wait = delete
    else:
        working.gallery = delete
    with pytest.raises(StudyGone):
        working.run(stay=True)
    # whoever started the worker says it, once
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    if anew:
        new = stored(url, tmp_path)
        assert [slot.attempt for slot in new.slots()] == [0, 0, 0]
        assert new.trials.all() == []
        assert worker(new).run()


class Died(BaseException):
    """Stands for the end of a process: nothing handles it."""


@contextmanager
def dying_at(commit: int) -> Iterator[None]:
    """The process dies right before its n-th commit, counted from 0, of whatever engine."""
    commits = itertools.count()

    def die(connection: sa.Connection) -> None:
        if next(commits) == commit:
            raise Died

    sa.event.listen(sa.Engine, "commit", die)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "commit", die)


@pytest.mark.parametrize("verb", ["create", "delete"])
def test_what_dies_between_transactions_leaves_nothing_to_trip_over(
    url: str, tmp_path: Path, verb: str
) -> None:
    """At every boundary in its turn, until the verb gets to its end."""
    for commit in itertools.count():
        study = None if verb == "create" else stored(url, tmp_path)
        try:
            with dying_at(commit):
                if study is None:
                    stored(url, tmp_path)
                else:
                    study.delete()
        except Died:
            pass
        else:
            assert commit
            break
        names = Storage(url).study_names()
        mirrors = [each.study_name for each in Storage(url).database.optuna.get_all_studies()]
        assert mirrors == names
        whole = stored(url, tmp_path)
        assert len(whole.slots()) == 3
        assert worker(whole).run()
        whole.delete()
        assert Storage(url).database.optuna.get_all_studies() == []


def test_deleting_twice_is_one_line(url: str, tmp_path: Path) -> None:
    study = stored(url, tmp_path)
    study.delete()
    with pytest.raises(StudyGone, match=r"^study 'fake' was deleted$"):
        study.delete()
    with pytest.raises(StudyError, match=r"not in .*; there: none"):
        studies.load(study.storage, "fake")
