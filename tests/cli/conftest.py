"""The command line in an empty folder, and a database with a finished study."""

import sys
from pathlib import Path

import pytest

from qsched.cli import main as cli
from qsched.service import stored_study as studies
from qsched.service.evaluator import Evaluator
from qsched.service.storage import Storage
from qsched.service.worker import Worker
from tests.support import fakes
from tests.support.command import Qsched


@pytest.fixture
def qsched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Qsched:
    """`qsched(*arguments)` in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("QSCHED_STORAGE", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qsched", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The default database with a study whose budget is spent."""
    definition = fakes.study(tmp_path / "files")
    stored = studies.create(Storage(f"sqlite:///{tmp_path}/storage/qsched.db"), definition)
    evaluator = Evaluator(fakes.FakeGenerator(), fakes.FakeScorers(), definition.calibration)
    assert Worker(stored, evaluator).run()
    return tmp_path / "storage" / "qsched.db"
