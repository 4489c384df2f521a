"""What every launcher keeps.

    from qsched.testing.launchers import LauncherContract

    class TestMine(LauncherContract):
        def launcher(self) -> Launcher:
            return Mine()

The workers are small Python programs; they and the tests have to see the same files.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from qsched.service.launchers import Crew, Fleet, Launcher

NOTE = """
import os, pathlib, signal, sys, time, uuid
folder = pathlib.Path(sys.argv[1])
def note(text):
    unfinished = folder / f"{uuid.uuid4().hex}.part"
    unfinished.write_text(str(text))
    unfinished.rename(unfinished.with_suffix(".note"))
"""
"""What each program begins with: `note(text)` writes a file of its own."""

WAITING = """
def stop(number, frame):
    note(number)
    sys.exit(0)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
note("ready")
while True:
    time.sleep(0.01)
"""


class LauncherContract:
    """Inherit it, and say what is tested."""

    patience = 60.0
    """Seconds that workers may take to begin, and to end."""

    def launcher(self) -> Launcher:
        """A new launcher."""
        raise NotImplementedError

    def test_as_many_workers_as_are_asked_for_run_the_command(self, tmp_path: Path) -> None:
        fleet = self._start(tmp_path, "note(os.getpid())", count=3)
        assert self._codes(fleet) == [0, 0, 0]
        assert len(_notes(tmp_path)) == 3

    def test_they_are_not_waited_for(self, tmp_path: Path) -> None:
        fleet = self._start(tmp_path, WAITING, count=2)
        assert list(fleet.codes()) == [None, None]
        self._until_noted(tmp_path, 2)
        assert list(fleet.codes()) == [None, None]
        fleet.send(signal.SIGTERM)
        self._codes(fleet)

    def test_both_signals_reach_every_worker(self, tmp_path: Path) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            folder = tmp_path / number.name
            fleet = self._start(folder, WAITING, count=2)
            self._until_noted(folder, 2)
            fleet.send(number)
            assert self._codes(fleet) == [0, 0]
            assert _notes(folder) == [str(number.value)] * 2 + ["ready"] * 2

    def test_a_signal_to_those_that_have_ended_is_no_error(self, tmp_path: Path) -> None:
        fleet = self._start(tmp_path, "", count=1)
        assert self._codes(fleet) == [0]
        fleet.send(signal.SIGTERM)
        assert self._codes(fleet) == [0]

    def test_exit_codes_are_those_of_a_shell(self, tmp_path: Path) -> None:
        failed = self._start(tmp_path / "failed", "sys.exit(3)", count=2)
        killed = self._start(tmp_path / "killed", "os.kill(os.getpid(), signal.SIGKILL)", count=1)
        assert self._codes(failed) == [3, 3]
        assert self._codes(killed) == [137]

    def test_the_environment_reaches_them_and_is_on_no_command_line(self, tmp_path: Path) -> None:
        """It may hold a password; this process's own is theirs as well."""
        program = "note(os.environ['QSCHED_SECRET'] + os.environ['PATH']); note(sys.argv)"
        fleet = self._start(tmp_path, program, count=1, QSCHED_SECRET="hush")
        assert self._codes(fleet) == [0]
        command, environment = sorted(_notes(tmp_path), key=lambda note: note.startswith("hush"))
        assert environment == "hush" + os.environ["PATH"]
        assert "hush" not in command

    def test_what_they_say_on_standard_error_is_kept_by_worker(self, tmp_path: Path) -> None:
        program = "print('error: no GPU', file=sys.stderr); sys.exit(2)"
        crew = self._crew(tmp_path, program, count=2)
        self._codes(self.launcher().start(crew))
        for worker in range(2):
            assert "error: no GPU" in crew.log(worker).read_text()

    def test_a_terminals_ctrl_c_does_not_reach_them_by_itself(self, tmp_path: Path) -> None:
        """They are told once, by their fleet."""
        fleet = self._start(tmp_path, "note(f'{os.uname().nodename} {os.getpgrp()}')", count=1)
        self._codes(fleet)
        assert _notes(tmp_path) != [f"{os.uname().nodename} {os.getpgrp()}"]

    def _start(self, folder: Path, program: str, count: int, **environment: str) -> Fleet:
        return self.launcher().start(self._crew(folder, program, count, **environment))

    def _crew(self, folder: Path, program: str, count: int, **environment: str) -> Crew:
        logs = folder / "logs of workers"
        logs.mkdir(parents=True)
        command = (sys.executable, "-c", NOTE + program, str(folder))
        return Crew(command, environment, count, logs)

    def _codes(self, fleet: Fleet) -> list[int | None]:
        self._until(lambda: None not in fleet.codes())
        return list(fleet.codes())

    def _until_noted(self, folder: Path, count: int) -> None:
        self._until(lambda: len(_notes(folder)) == count)

    def _until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.patience
        while not true():
            assert time.monotonic() < deadline, f"nothing within {self.patience:.0f} s"
            time.sleep(0.02)


def _notes(folder: Path) -> list[str]:
    """What the workers have noted, sorted."""
    return sorted(path.read_text() for path in folder.glob("*.note"))
