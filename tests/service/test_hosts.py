"""Which process a worker is among all machines, by values and in real namespaces."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qsched.service import hosts
from qsched.service.hosts import Process, is_gone, this_process
from qsched.service.queue import Queue
from qsched.service.storage import Storage

TELL = "from qsched.service.hosts import this_process; print(this_process(), flush=True); input()"


@pytest.fixture
def here() -> Process:
    process = this_process()
    assert process is not None
    return process


def test_it_is_written_as_the_database_has_it(here: Process) -> None:
    assert Process.parse(str(here)) == here
    assert len(str(here)) <= 255
    assert here.pid == os.getpid()
    assert not is_gone(str(here))


def test_its_number_may_be_used_again(here: Process) -> None:
    """A later process of the same number is another one."""
    assert replace(here, start=here.start - 1).gone


@pytest.mark.parametrize(
    "elsewhere",
    [{"boot": "another"}, {"host": "another"}, {"namespaces": "1.2"}],
    ids=lambda change: next(iter(change)),
)
def test_a_process_of_elsewhere_is_never_gone(here: Process, elsewhere: dict[str, Any]) -> None:
    """Two machines of one name differ in their boot."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert replace(here, pid=ended.pid).gone
    assert not replace(here, pid=ended.pid, **elsewhere).gone


@pytest.mark.parametrize("text", ["", "host/4026531836", "a/b/c/d/e"])
def test_what_says_less_is_never_gone(text: str) -> None:
    assert not is_gone(text)


def test_a_process_that_nobody_has_waited_for_is_gone(here: Process) -> None:
    zombie = subprocess.Popen(["sh", "-c", "exit 0"], stdout=subprocess.PIPE)
    assert zombie.stdout is not None
    zombie.stdout.read()  # until it has ended
    while Path(f"/proc/{zombie.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass
    assert replace(here, pid=zombie.pid).gone
    zombie.wait()


def test_a_system_without_proc_buries_nobody(
    here: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "PROC", tmp_path)
    assert this_process() is None
    assert not replace(here, start=here.start - 1).gone


def elsewhere(*namespaces: str) -> Sequence[str]:
    """The command that begins another one in new namespaces; skips where that isn't permitted."""
    command = ["unshare", "--fork", "--kill-child", *namespaces]
    if os.getuid():
        command[1:1] = ["--user", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"]).returncode:
        pytest.skip("this machine lets nobody make namespaces")
    return command


def test_a_container_of_the_same_host_name_keeps_its_trial(here: Process, url: str) -> None:
    """A live worker in real namespaces of its own, whose process number nobody has out here."""
    command = elsewhere("--pid", "--uts", "--mount-proc")
    storage = Storage(url)
    study = storage.add_study("one", "{}", {}, budget=1).study
    queue = Queue(storage.database, study)
    with subprocess.Popen(
        [*command, sys.executable, "-c", TELL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdout is not None
        told = worker.stdout.readline().strip()
        contained = Process.parse(told)
        assert contained is not None
        assert (contained.boot, contained.host) == (here.boot, here.host)
        assert contained.namespaces != here.namespaces
        storage.enter(study, "w", machine=told, host=here.host, pid=contained.pid, hardware={})
        slot = queue.claim("w", 60)
        assert slot is not None
        assert storage.bury(study, is_gone) == 0
        queue.renew(slot, 60)
        worker.communicate("\n")


def test_a_foreign_proc_is_not_believed() -> None:
    """A process that counts in a namespace of its own and sees the host's /proc."""
    command = elsewhere("--pid")
    done = subprocess.run(
        [*command, sys.executable, "-c", TELL], input="\n", capture_output=True, text=True
    )
    assert done.stdout.strip() == "None"
