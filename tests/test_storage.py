"""The database: every method one transaction, every fault one line."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from qsched.errors import StorageError
from qsched.schema import Score
from qsched.storage import DEFAULT_URL, Storage, this_process


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(f"sqlite:///{tmp_path}/made where missing/qsched.db")
    storage.add_study("one", "{}", {"sampling.steps": 4})
    storage.grow("one", 3)
    return storage


def test_slots_are_claimed_in_order_and_once(storage: Storage) -> None:
    owner = this_process()
    numbers = [slot.number for slot in iter(lambda: storage.claim("one", owner), None)]
    assert numbers == [0, 1, 2]
    assert storage.claim("one", owner) is None
    assert {slot.state for slot in storage.slots("one")} == {"running"}


def test_a_budget_grows_and_never_shrinks(storage: Storage) -> None:
    storage.grow("one", 5)
    storage.grow("one", 2)
    assert [slot.number for slot in storage.slots("one")] == [0, 1, 2, 3, 4]


def test_a_released_slot_keeps_its_vector_and_scores(storage: Storage) -> None:
    storage.claim("one", this_process())
    storage.begin("one", 0, [1.1, 0.9])
    storage.record("one", 0, [Score(0, "tc", 1.5, 0.1)])
    storage.release("one", 0)
    slot = storage.claim("one", this_process())
    assert slot is not None
    assert (slot.number, slot.vector) == (0, (1.1, 0.9))
    storage.begin("one", 0, [7.0, 7.0])
    assert storage.slots("one")[0].vector == (1.1, 0.9)
    assert storage.scores("one", 0) == [Score(0, "tc", 1.5, 0.1)]


def test_a_score_is_written_once_and_a_batch_as_a_whole(storage: Storage) -> None:
    storage.record("one", 0, [Score(0, "tc", 1.5, 0.1)])
    with pytest.raises(StorageError, match="UNIQUE"):
        storage.record("one", 0, [Score(1, "tc", 1.0, 0.1), Score(0, "tc", 9.9, 0.1)])
    assert storage.scores("one", 0) == [Score(0, "tc", 1.5, 0.1)]


def test_a_slot_is_parked_after_its_last_failure(storage: Storage) -> None:
    for attempt in range(3):
        slot = storage.claim("one", this_process())
        assert slot is not None
        assert slot.number == 0
        assert storage.fail("one", 0, f"reason {attempt}", limit=3) == (attempt == 2)
    assert (storage.slots("one")[0].state, storage.slots("one")[0].reason) == ("parked", "reason 2")
    following = storage.claim("one", this_process())
    assert following is not None
    assert following.number == 1


def test_slots_of_a_dead_process_are_reclaimed_those_of_a_living_one_are_not(
    storage: Storage,
) -> None:
    host = this_process().rpartition(":")[0]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    storage.claim("one", f"{host}:{dead.pid}")
    assert storage.reclaim("one") is None
    assert storage.slots("one")[0].state == "waiting"
    storage.claim("one", f"{host}:{os.getppid()}")
    assert storage.reclaim("one") == f"{host}:{os.getppid()}"
    assert storage.slots("one")[0].state == "running"


def test_two_studies_do_not_disturb_each_other(storage: Storage) -> None:
    storage.add_study("two", "{}", {})
    storage.grow("two", 2)
    storage.claim("two", this_process())
    storage.record("two", 0, [Score(0, "tc", 2.0, 0.5)])
    assert storage.scores("one", 0) == []
    assert storage.effort("one") == (0, 0.0)
    assert storage.effort("two") == (1, 0.5)
    assert storage.study_names() == ["one", "two"]


def test_effort_counts_an_image_once_however_many_scorers(storage: Storage) -> None:
    storage.record("one", 0, [Score(p, m, 1.0, 0.25) for p in (0, 1) for m in ("tc", "iq")])
    assert storage.effort("one") == (2, 0.5)


def test_the_outcome_is_kept(storage: Storage) -> None:
    assert storage.outcome("one") is None
    storage.conclude("one", {"verdict": "improved"})
    assert storage.outcome("one") == {"verdict": "improved"}


def test_optunas_tables_live_in_the_same_file(storage: Storage) -> None:
    import optuna

    optuna.create_study(storage=storage.optuna, study_name="one")
    with sqlite3.connect(storage.path) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        assert {"qsched_slots", "trials"} <= tables
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_newer_schema_is_refused(storage: Storage) -> None:
    with sqlite3.connect(storage.path) as connection:
        connection.execute("UPDATE qsched_schema SET version = 99")
    with pytest.raises(StorageError, match="version 99, this qsched reads 1"):
        Storage(f"sqlite:///{storage.path}")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("not a url", "not a database URL"),
        ("postgresql://me:secret@localhost/x", "only sqlite"),
    ],
)
def test_a_wrong_url_is_one_line_without_its_password(url: str, words: str) -> None:
    with pytest.raises(StorageError, match=words) as raised:
        Storage(url)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_text("this is not a database, it is a text, and a long one at that")
    with pytest.raises(StorageError, match="not a database") as raised:
        Storage(f"sqlite:///{tmp_path}/no.db")
    assert "\n" not in str(raised.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/qsched\.db"):
        Storage(f"sqlite:///{tmp_path}/file/qsched.db")


def test_the_url_comes_from_the_environment_then_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QSCHED_STORAGE", "sqlite:///elsewhere.db")
    assert Storage().path == tmp_path / "elsewhere.db"
    assert Storage("sqlite:///given.db").path == tmp_path / "given.db"
    monkeypatch.delenv("QSCHED_STORAGE")
    assert Storage().path == tmp_path / "storage" / "qsched.db"
    assert str(Storage()) == DEFAULT_URL
