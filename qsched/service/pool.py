"""Several workers on this machine, a process each."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from qsched.errors import StudyError
from qsched.service.database import ENVIRONMENT
from qsched.service.status import Status
from qsched.service.stored_study import StoredStudy

POLL = 1.0
"""Seconds between two looks at the study."""

logger = logging.getLogger(__name__)


def work(
    study: StoredStudy,
    workers: int,
    logs: Path,
    *,
    on_poll: Callable[[Status], None] = lambda status: None,
) -> bool:
    """Works on a study with `workers` processes until its budget is spent (True) or a signal
    stopped them (False).

    `logs`: the folder of what they say on standard error; a file that stays empty is removed. A
    worker that fails does not stop the others. Raises StudyError, with the last line of such a
    file, if none is left and there is work to do.
    """
    status = study.status()
    on_poll(status)
    if status.complete:
        return True
    logs.mkdir(parents=True, exist_ok=True)
    devices = _devices()
    processes: dict[Path, subprocess.Popen[bytes]] = {}
    with _forwarded(processes) as stopping:
        for index in range(workers):
            if stopping():
                break
            log = logs / f"worker-{index}.err"
            device = devices[index % len(devices)] if devices else None
            processes[log] = _start(study, device, log)
        while any(process.poll() is None for process in processes.values()):
            time.sleep(POLL)
            on_poll(study.status())
    for log in processes:
        if not log.stat().st_size:
            log.unlink()
    if stopping():
        return False
    status = study.status()
    on_poll(status)
    if not status.complete:
        failed = next((log for log in processes if log.exists()), None)
        lines = failed.read_text(errors="replace").strip().splitlines() if failed else []
        raise StudyError(
            f"study {study.name!r}: all {workers} workers ended and {status.waiting} trials wait; "
            f"{failed or logs}: {lines[-1] if lines else 'no word'}"
        )
    return True


def _start(study: StoredStudy, device: str | None, log: Path) -> "subprocess.Popen[bytes]":
    """One `qsched work`. The URL goes by the environment, because it may hold a password."""
    url = study.storage.database.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "qsched", "work", study.name, "--idle-exit", "--grace", "0"]
    if device:
        command += ["--device", device]
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            env={**os.environ, ENVIRONMENT: url},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # a worker keeps a log of its own
            stderr=file,
            start_new_session=True,  # Ctrl-C reaches them through this process, once
        )


@contextmanager
def _forwarded(
    processes: "dict[Path, subprocess.Popen[bytes]]",
) -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM reach the workers while the context lasts; returns whether one came."""
    came = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _devices() -> list[str]:
    """This machine's GPUs."""
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
