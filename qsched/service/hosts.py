"""Which process a worker is, among all machines, and whether it is known to be gone.

A process number says little: two hosts may have one name, containers count their processes anew,
and numbers are used again. So a process is told by the kernel's boot, the host's name, the
namespaces in which its number and its start are counted, and both of them.
"""

import os
import socket
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Self

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process. `start`: in clock ticks since the machine booted."""

    boot: str
    host: str
    namespaces: str
    pid: int
    start: int

    def __str__(self) -> str:
        """As the database has it; `parse` reads it."""
        return "/".join(map(str, astuple(self)))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The process that `str` wrote; None for what says less."""
        try:
            boot, host, namespaces, pid, start = text.split("/")
            return cls(boot, host, namespaces, int(pid), int(start))
        except ValueError:
            return None

    @property
    def gone(self) -> bool:
        """Whether it ran where this process runs, and runs no more; False if that can't be told."""
        here = this_process()
        if here is None or replace(self, pid=here.pid, start=here.start) != here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # there is one, of somebody else
            pass
        found = _stat(self.pid)
        return found is not None and (found[0] in "ZX" or found[1] != self.start)


def is_gone(text: str) -> bool:
    """As `Process.gone`, of what the database has of a process."""
    process = Process.parse(text)
    return process is not None and process.gone


def this_process() -> Process | None:
    """This process; None on a system that doesn't tell enough (without Linux's /proc)."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        numbers, times = (_namespace(name) for name in ("pid", "time"))
    except OSError:
        return None
    found = _stat(os.getpid())
    if not boot or numbers is None or found is None:
        return None
    return Process(boot, socket.gethostname(), f"{numbers}.{times}", os.getpid(), found[1])


def _namespace(name: str) -> int | None:
    """The number of this process's namespace; None where the kernel has none of that kind."""
    try:
        return (PROC / "self/ns" / name).stat().st_ino
    except FileNotFoundError:
        return None


def _stat(pid: int) -> tuple[str, int] | None:
    """A process's state and start; None if it is hidden, or /proc counts as another namespace."""
    try:
        if (PROC / "self").readlink() != Path(str(os.getpid())):
            return None
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # after the name, which may hold anything
    return fields[0], int(fields[19])
