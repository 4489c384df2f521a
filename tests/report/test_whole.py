"""A run's folder is the old one or the new one, whenever the process that writes it dies."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.artifacts import FileSystemArtifactStore
from PIL import Image

from qsched import api
from qsched.errors import CoefficientsError, OutputError
from qsched.pictures.sheets import Pictures
from qsched.proof import outcome, validation
from qsched.proof.outcome import Proof
from qsched.report import artifacts, figures, page, writing
from qsched.report.export import coefficients_of
from qsched.report.writing import Part
from qsched.schedule.coefficients import Coefficients
from qsched.service import stored_study as studies
from qsched.service.evaluator import Evaluator
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.worker import Worker
from tests.support import fakes
from tests.support.outcomes import RAMP, pictures, proof

OLD = proof("improved")
NEW = proof("suspicious", best=Coefficients.ramp(4, 1.2, 0.9))
ALL = ~Part(0)


@pytest.fixture
def study(tmp_path: Path) -> StoredStudy:
    stored = studies.create(
        Storage(f"sqlite:///{tmp_path}/db/q.db"), fakes.study(tmp_path / "files")
    )
    evaluator = Evaluator(fakes.FakeGenerator(), fakes.FakeScorers(), stored.definition.calibration)
    assert Worker(stored, evaluator).run()
    return stored


@pytest.fixture
def drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and figures that take no time; they are not what is looked at."""

    def render(proof: Proof, *args: object) -> str:
        return f'<meta name="qsched-run" content="{proof.run}">'

    class Drawn:
        def save(self, path: Path) -> None:
            Image.new("RGB", (8, 8)).save(path)

    monkeypatch.setattr(page, "render", render)
    monkeypatch.setattr(figures, "course", lambda *args: Drawn())


def conclude(study: StoredStudy, folder: Path, found: Proof) -> None:
    seen = pictures(coefficients=found.candidate.coefficients)
    artifacts.conclude(study, found, seen)
    writing.write(folder, study, ALL, pictures=seen)


def runs(folder: Path) -> dict[str, str]:
    """{file: the run that it says it is of}; of the scheduler's code, none."""
    texts = {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.suffix in (".json", ".html", ".md") and ".qsched" not in str(path)
    }
    found = {
        name: re.search(r"run\W+(?:content=\")?([0-9a-f]{16})", text)
        for name, text in texts.items()
    }
    return {name: match[1] for name, match in found.items() if match}


WRITES: tuple[tuple[Any, str], ...] = (
    (Path, "write_text"),
    (Path, "rename"),
    (FileSystemArtifactStore, "write"),
    (FileSystemArtifactStore, "remove"),
    (Storage, "conclude"),
)
"""Files, the one rename that counts, and what lies elsewhere; `test_outputs` has the rest."""


def dies_at(number: int, run: Callable[[], None]) -> bool:
    """Runs in a process of its own that is gone at a write, or half-way through it; False if there
    are fewer writes."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    count = 0

    def deadly(name: str, write: Callable[..., object]) -> Callable[..., object]:
        def called(*args: Any, **kwargs: Any) -> object:
            nonlocal count
            count += 1
            if count == number:
                if name == "write_text":
                    write(args[0], args[1][: len(args[1]) // 2], *args[2:], **kwargs)
                os._exit(9)
            return write(*args, **kwargs)

        return called

    try:
        for owner, name in WRITES:
            setattr(owner, name, deadly(name, getattr(owner, name)))
        run()
        os._exit(0)
    finally:
        os._exit(1)


def test_a_kill_in_a_validation_leaves_the_old_or_the_new(
    tmp_path: Path, study: StoredStudy, drawn_at_once: None
) -> None:
    conclude(study, tmp_path / "out", OLD)
    (tmp_path / "out" / "mine.txt").write_text("not of qsched")
    names = sorted(str(path) for path in (tmp_path / "out").rglob("*"))
    shutil.copytree(tmp_path / "db", tmp_path / "db before")
    shutil.copytree(tmp_path / "out", tmp_path / "out before")
    seen: set[tuple[str, str]] = set()
    for number in range(1, 100):
        for name in ("db", "out"):
            shutil.rmtree(tmp_path / name)
            shutil.copytree(tmp_path / f"{name} before", tmp_path / name)

        def again() -> None:
            conclude(
                studies.load(Storage(f"sqlite:///{tmp_path}/db/q.db"), "fake"),
                tmp_path / "out",
                NEW,
            )

        killed = dies_at(number, again)
        assert len(set(runs(tmp_path / "out").values())) <= 1, number
        stored = studies.load(Storage(f"sqlite:///{tmp_path}/db/q.db"), "fake")
        kept = outcome.kept(stored)
        assert kept
        assert isinstance(artifacts.kept(stored, kept), Pictures), number
        (tmp_path / "out" / ".qsched-unfinished-x").mkdir()  # what another one left
        found = coefficients_of(tmp_path / "out" / "coefficients.json")
        of = set(runs(tmp_path / "out").values())
        assert len(of) == 1, number
        assert found == (RAMP if of == {OLD.run} else Coefficients.identity(4))
        api.write_report(stored, tmp_path / "out")  # whoever comes next
        assert set(runs(tmp_path / "out").values()) == {kept.run}, number
        assert sorted(str(path) for path in (tmp_path / "out").rglob("*")) == names
        seen.add((kept.run, of.pop()))
        if not killed:
            break
    assert seen == {(OLD.run, OLD.run), (NEW.run, OLD.run), (NEW.run, NEW.run)}
    assert number > 10


@pytest.fixture
def validated(study: StoredStudy, monkeypatch: pytest.MonkeyPatch) -> StoredStudy:
    """A study whose validation takes no time."""
    seen = pictures(coefficients=NEW.candidate.coefficients)
    monkeypatch.setattr(validation, "validate", lambda *args, **kwargs: (NEW, seen))
    return study


def test_a_full_disk_is_one_line_and_the_verdict_is_stored(
    tmp_path: Path, validated: StoredStudy, drawn_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    conclude(validated, tmp_path / "out", OLD)

    def full(self: Image.Image, path: Path, *args: object, **kwargs: object) -> None:
        if path.name == "images.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, path, *args, **kwargs)

    save: Any = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError) as raised:
        api.validate(validated, out=tmp_path / "out")
    assert str(raised.value) == (
        f"{tmp_path}/out: cannot be written: No space left on device; give another --out; the "
        "verdict is stored: qsched report fake and qsched export fake write it later"
    )
    assert set(runs(tmp_path / "out").values()) == {OLD.run}
    monkeypatch.undo()
    api.take_away(validated, tmp_path / "out")
    assert set(runs(tmp_path / "out").values()) == {NEW.run}
    assert not list((tmp_path / "out").glob(".qsched*"))


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_drawn(
    tmp_path: Path, validated: StoredStudy
) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match="taken: cannot be written: File exists"):
        api.validate(validated, out=tmp_path / "taken")
    assert outcome.kept(validated) is None


def test_an_export_of_two_runs_is_refused(tmp_path: Path, study: StoredStudy) -> None:
    outcome.keep(study, proof("not_shown"))
    paths = api.take_away(study, tmp_path / "plain")
    api.take_away(study, tmp_path / "forced", force=True)
    assert coefficients_of(tmp_path / "forced" / "coefficients.json") == RAMP
    shutil.copy(tmp_path / "forced" / "coefficients.json", paths[0])
    with pytest.raises(CoefficientsError, match=r"plain/coefficients\.json: model_coefficients"):
        coefficients_of(paths[0])
    for path in (tmp_path / "forced").rglob("*.json"):
        text = path.read_text().replace(proof("not_shown").run, "0" * 16)
        document = json.loads(text)
        if path.name == "coefficients.json":
            document.pop("digest")
            path.write_text(json.dumps(document))
    with pytest.raises(CoefficientsError, match="run = '0000000000000000', but"):
        coefficients_of(tmp_path / "forced" / "coefficients.json")


def test_what_an_earlier_run_left_is_written_anew_and_nothing_else_is(
    tmp_path: Path, study: StoredStudy, drawn_at_once: None
) -> None:
    conclude(study, tmp_path / "out", OLD)
    conclude(study, tmp_path / "theirs", OLD)
    theirs = tmp_path / "theirs" / "coefficients.json"
    theirs.write_text(theirs.read_text().replace('"study": "fake"', '"study": "another"'))
    kept = theirs.read_text()
    artifacts.conclude(study, NEW, pictures(coefficients=NEW.candidate.coefficients))
    for name in ("out", "theirs", "new"):
        api.write_report(study, tmp_path / name)
    assert set(runs(tmp_path / "out").values()) == {NEW.run}
    assert theirs.read_text() == kept
    assert sorted(runs(tmp_path / "new")) == ["report.html", "report.json"]
