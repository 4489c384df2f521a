"""Several workers at once: how a launcher is named, what is passed on, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from qsched.errors import StorageError, StudyError
from qsched.plugins import beside
from qsched.service import launchers
from qsched.service import stored_study as studies
from qsched.service.launchers import Crew, Local
from qsched.service.status import Status
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.testing.launchers import LauncherContract
from tests.support import fakes_light as fakes


class TestLocal(LauncherContract):
    def launcher(self) -> Local:
        return Local()


class Forgetful(Local):
    """Breaks the contract."""

    def start(self, crew: Crew) -> launchers.Processes:
        return super().start(replace(crew, environment={}, count=1))


class OfForgetful(LauncherContract):
    def launcher(self) -> Local:
        return Forgetful()


def test_the_contract_is_not_kept_by_all(tmp_path: Path) -> None:
    contract = OfForgetful()
    with pytest.raises(AssertionError):
        contract.test_as_many_workers_as_are_asked_for_run_the_command(tmp_path / "count")
    with pytest.raises(AssertionError):
        contract.test_the_environment_reaches_them_and_is_on_no_command_line(tmp_path / "env")


def test_a_crew_is_spread_over_devices_in_turn(tmp_path: Path) -> None:
    said = "import sys; sys.stderr.write(' '.join(sys.argv[1:]))"
    crew = Crew((sys.executable, "-c", said), {}, 3, tmp_path, spread=True)
    for devices, expected in (
        (["cuda:0", "cuda:1"], ["--device cuda:0", "--device cuda:1", "--device cuda:0"]),
        ([], ["", "", ""]),
    ):
        fleet = Local(devices.copy).start(crew)
        while None in fleet.codes():
            pass
        assert [crew.log(worker).read_text() for worker in range(3)] == expected


def test_torch_says_which_devices_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvidia-smi lists all of them whatever CUDA_VISIBLE_DEVICES says, or fails in words."""
    from qsched.pipelines.devices import gpus

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for seen, script in ((2, "seq 0 7"), (0, "echo NVIDIA-SMI has failed; exit 9")):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setattr("torch.cuda.device_count", lambda seen=seen: seen)
        assert gpus() == ["cuda:0", "cuda:1"][:seen]


def test_where_the_study_says_the_device_nothing_is_added(tmp_path: Path) -> None:
    crew = Crew((sys.executable, "-c", "import sys; sys.exit(len(sys.argv))"), {}, 1, tmp_path)
    fleet = Local(lambda: ["cuda:0"]).start(crew)
    while None in fleet.codes():
        pass
    assert fleet.codes() == [1]


# By name.


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("locall", r"launcher: 'locall' is no launcher; did you mean 'local'\? expected one of"),
        ("nowhere:Slurm", "no module 'nowhere' that can be imported; put nowhere.py beside"),
        ("local:4", "'local:4'; expected a name alone, without ':4'"),
        ("pathlib:Path.cwd", "expected one of local, or module:name"),
        ("fractions:Decimal", r"'fractions:Decimal': Decimal has no start\(crew\)"),
        ("json:loads", "'json:loads' can't be made: TypeError: "),
    ],
)
def test_what_is_no_launcher_is_refused_in_words(name: str, words: str) -> None:
    with pytest.raises(StudyError, match=words) as refused:
        launchers.launcher_named(name)
    assert "\n" not in str(refused.value)


def test_a_launcher_may_lie_beside_the_study(tmp_path: Path) -> None:
    (tmp_path / "my_slurm.py").write_text(
        "class Slurm:\n    def start(self, crew):\n        return None\n"
    )
    with beside(tmp_path):
        assert type(launchers.launcher_named("my_slurm:Slurm")).__name__ == "Slurm"


# Until it ends.


class FakeFleet:
    """Ends with `codes` after so many looks."""

    def __init__(
        self, codes: Sequence[int], looks: int, on_look: Callable[[], None] = lambda: None
    ) -> None:
        self.ends, self.looks, self.on_look = codes, looks, on_look
        self.sent: list[int] = []

    def codes(self) -> list[int | None]:
        self.looks -= 1
        self.on_look()
        return [None] * len(self.ends) if self.looks > 0 else list(self.ends)

    def send(self, number: int) -> None:
        self.sent.append(number)


class FakeLauncher:
    """Has one fleet, and keeps the crew that it was given."""

    def __init__(self, fleet: FakeFleet, said: Mapping[int, str] | None = None) -> None:
        self.fleet = fleet
        self.said = said or {}

    def start(self, crew: Crew) -> FakeFleet:
        self.crew = crew
        for worker in range(crew.count):
            crew.log(worker).write_text(self.said.get(worker, ""))
        return self.fleet


@pytest.fixture
def study(tmp_path: Path) -> StoredStudy:
    return studies.create(Storage(f"sqlite:///{tmp_path}/q.db"), fakes.study(tmp_path))


def crew(study: StoredStudy, folder: Path, count: int = 2) -> Crew:
    return launchers.crew_of(study, count, folder / "made where missing", "--idle-exit")


def test_a_crew_works_on_its_study(study: StoredStudy, tmp_path: Path) -> None:
    made = crew(study, tmp_path)
    assert made.command[1:] == ("-P", "-m", "qsched", "work", "fake", "--idle-exit")
    assert made.environment["QSCHED_STORAGE"] == f"sqlite:///{tmp_path}/q.db"
    assert "q.db" not in repr(made)


def test_workers_import_from_where_their_parent_does_and_from_nowhere_else(
    study: StoredStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, current = tmp_path / "places", tmp_path / "current"
    for folder in (places, current / "qsched"):
        folder.mkdir(parents=True)
    (places / "mine.py").write_text("here = 1")
    for trap in ("secrets.py", "mine.py", "qsched/__init__.py"):
        (current / trap).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(places)
    monkeypatch.chdir(current)
    made = crew(study, tmp_path, count=1)
    program = "import secrets, mine, qsched.__main__; assert mine.here"
    for rest in (("-c", program), ("-m", "qsched", "work", "--help")):
        fleet = Local(list).start(replace(made, command=(*made.command[:2], *rest), logs=tmp_path))
        while fleet.codes() == [None]:
            time.sleep(0.05)
        assert fleet.codes() == [0]
    assert not (tmp_path / "ran").exists()


def test_the_module_is_run_as_the_command_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secrets.py").write_text("open('ran', 'w')")
    (tmp_path / "typer.py").write_text("open('ran', 'w')")
    said = subprocess.run([sys.executable, "-m", "qsched", "--version"], cwd=tmp_path, check=True)
    assert said.returncode == 0
    assert not (tmp_path / "ran").exists()


def test_it_ends_with_its_workers_and_their_codes(study: StoredStudy, tmp_path: Path) -> None:
    launcher = FakeLauncher(FakeFleet([0, 2, 3], looks=3), said={1: "warning\nerror: no GPU\n"})
    made, looked = crew(study, tmp_path, count=3), list[Status]()
    ended = launchers.work(study, made, launcher, on_look=looked.append, every=0.0)
    assert launcher.crew is made
    assert (ended.codes, ended.failed, ended.stopped) == ((0, 2, 3), 1, False)
    assert [status.budget for status in looked] == [6, 6]
    assert [made.log(worker).exists() for worker in range(3)] == [False, True, False]
    assert launchers.last_words(made, 1) == f"{made.log(1)}: error: no GPU"
    assert launchers.last_words(made, 0) == f"{made.log(0)}: no word"


def test_each_signal_is_passed_on_once(study: StoredStudy, tmp_path: Path) -> None:
    numbers = iter([signal.SIGINT, signal.SIGINT, signal.SIGTERM])

    def interrupt() -> None:
        if number := next(numbers, None):
            os.kill(os.getpid(), number)

    fleet = FakeFleet([0, 0], looks=6, on_look=interrupt)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    said: list[str] = []
    ended = launchers.work(
        study,
        crew(study, tmp_path),
        FakeLauncher(fleet),
        on_stop=lambda: said.append("stopping"),
    )
    assert ended.stopped
    assert said == ["stopping"]
    assert fleet.sent == [signal.SIGINT, signal.SIGINT, signal.SIGTERM]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_database_that_is_away_ends_no_worker(
    study: StoredStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def away(status: object) -> None:
        raise StorageError("storage away: connection refused")

    fleet = FakeFleet([0, 0], looks=3)
    ended = launchers.work(study, crew(study, tmp_path), FakeLauncher(fleet), on_look=away)
    assert ended.codes == (0, 0)
    assert fleet.sent == []
    assert "storage away: connection refused" in caplog.messages


def test_what_breaks_here_leaves_no_worker_behind(study: StoredStudy, tmp_path: Path) -> None:
    def broken(status: object) -> None:
        raise KeyError("in the display")

    fleet = FakeFleet([0, 0], looks=3)
    with pytest.raises(KeyError):
        launchers.work(study, crew(study, tmp_path), FakeLauncher(fleet), on_look=broken)
    assert fleet.sent == [signal.SIGTERM]


def test_a_crew_that_cannot_be_started_is_an_error_in_words(
    study: StoredStudy, tmp_path: Path
) -> None:
    class Closed:
        def start(self, crew: Crew) -> FakeFleet:
            raise FileNotFoundError("sbatch: not found")

    with pytest.raises(StudyError) as refused:
        launchers.work(study, crew(study, tmp_path), Closed())
    words = "Closed could not start the workers: FileNotFoundError: sbatch: not found"
    assert str(refused.value) == words
