"""A second machine on this one, by Linux namespaces: its own process numbers, /proc and boot.

Its host name is this machine's: the two can only be told apart by what else identifies them.
"""

import ctypes
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")
_KINDS = {"pid": 0x20000000, "mnt": 0x00020000, "uts": 0x04000000}


class Machine:
    """A machine that runs until it is switched off. Raises OSError where namespaces aren't allowed.

    `folder`: where it keeps what makes its boot different from this machine's.
    """

    def __init__(self, folder: Path) -> None:
        boot = folder / "boot_id"
        boot.write_text("00000000-0000-4000-8000-00000000b007\n")
        ready = folder / "booted"
        script = f"mount --bind '{boot}' {BOOT} && touch '{ready}' && exec sleep infinity"
        namespaces = ("--pid", "--uts", "--mount", "--mount-proc", "--fork", "--kill-child")
        self._process = subprocess.Popen(["unshare", *namespaces, "sh", "-c", script])
        while not ready.exists():
            if self._process.poll() is not None:
                raise OSError("unshare: a second machine can't be had here; it takes root")
            time.sleep(0.02)
        self.init = child_of(self._process.pid)

    def switch_off(self) -> None:
        """The end of everything that runs on it."""
        self._process.kill()
        self._process.wait()


def second_machine(folder: Path) -> Machine | None:
    """A machine; None where namespaces aren't allowed."""
    try:
        return Machine(folder)
    except OSError:
        return None


def inside(init: int, function: Callable[..., None], *arguments: object) -> None:
    """Runs `function` in a child on the machine whose first process is `init`; ends as it ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    handles = {kind: os.open(f"/proc/{init}/ns/{kind}", os.O_RDONLY) for kind in _KINDS}
    for kind, handle in handles.items():
        if libc.setns(handle, _KINDS[kind]):
            raise OSError(ctypes.get_errno(), f"setns {kind}")
    child = os.fork()
    if not child:
        code = 1
        try:
            function(*arguments)
            code = 0
        except BaseException:  # noqa: BLE001 - it is all that is left of it
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        with suppress(OSError):  # nobody handles SIGKILL
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def child_of(pid: int) -> int:
    """The only child of a process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
