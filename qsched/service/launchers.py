"""Several workers at once: how their processes are started, and how they are looked after.

    ended = work(study, crew_of(study, 4, logs, "--idle-exit"), launcher_named("local"))

A study names its launcher in `[execution] launcher`: "local", one that an installed package offers
(entry points `qsched.launchers`), or ``module:name``, a class whose `start` begins a crew:
`testing.launchers` says in tests what is asked of it.
"""

import logging
import math
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from qsched.errors import StorageError, StudyError, in_one_line
from qsched.pipelines.table import LOCAL
from qsched.plugins import Registry
from qsched.service.database import ENVIRONMENT
from qsched.service.status import Status
from qsched.service.stored_study import StoredStudy
from qsched.study.study import ARTIFACTS, Study

LOOK = 1.0
"""Seconds between two looks at the study."""

POLL = 0.1
"""Seconds between two looks at the workers, and at most until a signal is passed on."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Crew:
    """Workers to start: `count` processes of one command, all alike.

    `environment`: what each needs beside this process's own. It holds the database's URL, perhaps
    with a password: never part of a command line or of a log. `logs`: a folder that exists; what a
    worker says on standard error goes to its `log`. `spread`: the study leaves its device open, so
    a launcher that puts several workers on one machine adds "--device" and a name to the command.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    count: int
    logs: Path
    spread: bool = False

    def log(self, worker: int) -> Path:
        """The file of what a worker, from 0, says on standard error."""
        return self.logs / f"worker-{worker}.err"


class Fleet(Protocol):
    """Workers that a launcher started."""

    def codes(self) -> Sequence[int | None]:
        """Each worker's exit code; None while it works, or waits for its machine.

        As a shell has them: 0 if all is well, 128 + n if it died of signal n.
        """

    def send(self, number: int) -> None:
        """Passes a signal, SIGINT or SIGTERM, on to the workers that have not ended. Returns at
        once; a worker that ended in the meantime is no error."""


class Launcher(Protocol):
    """Starts workers, here or elsewhere. Made without arguments."""

    def start(self, crew: Crew) -> Fleet:
        """Starts `crew.count` workers and returns without waiting for them.

        A Ctrl-C in the terminal must not reach them by itself: their fleet is sent it. What is
        raised is said in one line; then none of them may be left running.
        """


def _refusal(words: str) -> StudyError:
    return StudyError(f"execution.launcher: {words}")


LAUNCHERS = Registry(
    "launcher", "qsched.launchers", {LOCAL: "qsched.service.launchers:Local"}, _refusal
)


def launcher_named(name: str) -> Launcher:
    """The launcher that a study file means. Raises StudyError if there is none, or it is none."""
    found = LAUNCHERS.find(name)
    if found.rest:
        raise _refusal(f"{name!r}; expected a name alone, without {':' + found.rest!r}")
    try:
        made: Launcher = found.value()
    except Exception as error:
        raise _refusal(f"{name!r} can't be made: {in_one_line(error)}") from error
    if not callable(getattr(made, "start", None)):
        raise _refusal(
            f"{name!r}: {type(made).__name__} has no start(crew); expected a class as "
            "qsched.service.launchers describes it"
        )
    return made


def _gpus_here() -> list[str]:
    """As `pipelines.devices.gpus`, imported when it is asked."""
    from qsched.pipelines.devices import gpus

    return gpus()


class Local:
    """Processes of this machine. `devices()`: what a crew is spread over, in turn."""

    def __init__(self, devices: Callable[[], Sequence[str]] = _gpus_here) -> None:
        self._devices = devices

    def start(self, crew: Crew) -> "Processes":
        """One process a worker, in a session of its own."""
        devices = self._devices() if crew.spread else ()
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for worker in range(crew.count):
                device = ["--device", devices[worker % len(devices)]] if devices else []
                processes.append(_process(crew, worker, device))
        except OSError:
            Processes(processes).send(signal.SIGTERM)
            raise
        return Processes(processes)


def _process(crew: Crew, worker: int, options: Sequence[str]) -> "subprocess.Popen[bytes]":
    with crew.log(worker).open("wb") as log:
        return subprocess.Popen(
            [*crew.command, *options],
            env={**os.environ, **crew.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # a worker keeps a log of its own
            stderr=log,
            start_new_session=True,
        )


class Processes:
    """The fleet of `Local`."""

    def __init__(self, processes: "Sequence[subprocess.Popen[bytes]]") -> None:
        self._processes = tuple(processes)

    def codes(self) -> list[int | None]:
        """Each process's exit code, None while it runs."""
        codes = [process.poll() for process in self._processes]
        return [128 - code if code is not None and code < 0 else code for code in codes]

    def send(self, number: int) -> None:
        """The signal to all that run."""
        for process in self._processes:
            process.send_signal(number)  # nothing to one that has ended


@dataclass(frozen=True)
class Ended:
    """How a crew ended: `codes` by worker, and whether a signal had `stopped` it."""

    codes: tuple[int, ...]
    stopped: bool

    @property
    def failed(self) -> int | None:
        """The first worker whose exit code is not 0."""
        return next((worker for worker, code in enumerate(self.codes) if code), None)


def crew_of(
    study: StoredStudy, count: int, logs: Path, *options: str, spread: bool = False
) -> Crew:
    """`count` workers of a study; `options`: of `qsched work`. They import from where this process
    does, and not from the folder that they happen to run in."""
    url = study.storage.database.url.render_as_string(hide_password=False)
    return Crew(
        command=(sys.executable, "-P", "-m", "qsched", "work", *_named(study.definition), *options),
        environment={
            ENVIRONMENT: url,
            "PYTHONPATH": os.pathsep.join(own_places()),
            **({ARTIFACTS: store} if (store := study.definition.store) else {}),
        },
        count=count,
        logs=logs,
        spread=spread,
    )


def _named(study: Study) -> tuple[str, ...]:
    """A study as `qsched work` is told of it: what this process lets it run, another one must be
    told too."""
    named = (study.file, "--name", study.name) if study.modules and study.file else (study.name,)
    return (*named, *(word for name in sorted(study.allow) for word in ("--allow-code", name)))


def own_places() -> list[str]:
    """Where this process looks for modules before it looks into the standard library: what another
    one of the same Python doesn't know by itself. Absolute, so that they are the same elsewhere."""
    library = Path(sysconfig.get_path("stdlib"))
    version = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    begins = {str(library), str(library.with_name(version))}
    return [os.path.abspath(place) for place in takewhile(lambda p: p not in begins, sys.path)]  # noqa: PTH100


def work(
    study: StoredStudy,
    crew: Crew,
    launcher: Launcher,
    *,
    on_look: Callable[[Status], None] = lambda status: None,
    on_stop: Callable[[], None] = lambda: None,
    every: float = LOOK,
) -> Ended:
    """Starts a crew on a study and waits until all of it has ended.

    SIGINT and SIGTERM are passed on; a worker that fails does not stop the others. `on_look` is
    told where the study stands, each `every` seconds; `on_stop` is called with the first signal. Of
    the logs those stay that say something.
    Raises StudyError if the crew can't be started.
    """
    crew.logs.mkdir(parents=True, exist_ok=True)
    with _signals() as came:
        fleet = _started(launcher, crew)
        try:
            codes = _awaited(fleet, came, _looking(study, on_look, every), on_stop)
        except BaseException:
            fleet.send(signal.SIGTERM)
            raise
    for worker in range(crew.count):
        if crew.log(worker).is_file() and not crew.log(worker).stat().st_size:
            crew.log(worker).unlink()
    return Ended(codes, bool(came))


def last_words(crew: Crew, worker: int) -> str:
    """The log of a worker that failed, and its last line."""
    log = crew.log(worker)
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return f"{log}: {lines[-1] if lines else 'no word'}"


def _started(launcher: Launcher, crew: Crew) -> Fleet:
    try:
        return launcher.start(crew)
    except Exception as error:
        raise StudyError(
            f"{type(launcher).__name__} could not start the workers: {in_one_line(error)}"
        ) from error


def _awaited(
    fleet: Fleet, came: Sequence[int], look: Callable[[], None], on_stop: Callable[[], None]
) -> tuple[int, ...]:
    """The workers' exit codes; signals that `came` are sent to them until then."""
    sent = 0
    while True:
        codes = fleet.codes()
        ended = tuple(code for code in codes if code is not None)
        if len(ended) == len(codes):
            return ended
        while sent < len(came):
            fleet.send(came[sent])
            if not sent:
                on_stop()
            sent += 1
        look()
        time.sleep(POLL)


def _looking(
    study: StoredStudy, on_look: Callable[[Status], None], every: float
) -> Callable[[], None]:
    """Tells `on_look` at the first call, and then every so often.

    A database that is away is a matter of the workers, who have more patience.
    """
    looked = -math.inf

    def look() -> None:
        nonlocal looked
        if time.monotonic() - looked < every:
            return
        try:
            on_look(study.status())
        except StorageError as error:
            logger.warning("%s", error)
        looked = time.monotonic()

    return look


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM only join this list while the context lasts."""
    came: list[int] = []

    def join(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before: dict[int, Any] = {
        number: signal.signal(number, join) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
