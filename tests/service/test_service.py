"""Workers as people start them: real processes of the command line, on both databases."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qsched.demo.captions import prompt_lists
from qsched.service.storage import Storage
from qsched.service.stored_study import load

pytestmark = pytest.mark.slow

CALIBRATION, HELD_OUT = prompt_lists()
STUDY = f"""
name = "served"
[model]
name = "demo"
[sampling]
steps = 2
[quantization]
scheme = "w4a8"
[objective]
terms = [{{ scorer = "demo-alignment" }}, {{ scorer = "demo-quality", weight = 2.0 }}]
[search]
trials = 8
[prompts]
calibration = {json.dumps(CALIBRATION[:8])}
held_out = {json.dumps(HELD_OUT[:4])}
[validation]
metrics = ["similarity"]
[execution]
batch_size = 2
"""


class Shell:
    """`qsched` in a folder, with a database in the environment."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        (folder / "served.toml").write_text(STUDY, encoding="utf-8")
        chosen = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "QSCHED_STORAGE": url}
        self.environment = {**os.environ, **chosen}

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "qsched", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *arguments: str) -> str:
        """Standard output of a command that succeeds."""
        process = self.start(*arguments)
        out, err = process.communicate()
        assert process.returncode == 0, err
        return out

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.call("status", "served", "--json"))
        return found

    def wait_for_images(self, images: int, *processes: "subprocess.Popen[str]") -> None:
        """Until so many images are scored."""
        deadline = time.monotonic() + 240
        while self.status()["images"] < images:
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in processes)


@pytest.fixture
def shell(tmp_path: Path, url: str) -> Shell:
    made = Shell(tmp_path, url)
    made.call("create", "served.toml")
    return made


def test_two_workers_share_a_study_and_one_is_told_to_stop(shell: Shell) -> None:
    workers = [shell.start("work", "served", "--idle-exit") for _ in range(2)]
    shell.wait_for_images(10, *workers)
    workers[0].send_signal(signal.SIGTERM)
    for worker in workers:
        _, err = worker.communicate()
        assert worker.returncode == 0, err
        assert "Traceback" not in err
    status = shell.status()
    assert (status["done"], status["running"], status["waiting"]) == (8, 0, 0)
    assert status["images"] == 8 * 8
    assert {worker["state"] for worker in status["workers"]} == {"stopped"}
    assert sum(worker["images"] for worker in status["workers"]) == 8 * 8  # none of them twice
    logs = list((shell.folder / "runs" / "served" / "workers").glob("*.log"))
    assert len(logs) == 2
    assert all("begins on" in log.read_text() for log in logs)


def test_a_second_interrupt_gives_the_trial_back_at_once(shell: Shell) -> None:
    worker = shell.start("work", "served", "--grace", "600")
    shell.wait_for_images(2, worker)
    worker.send_signal(signal.SIGINT)
    time.sleep(0.02)
    worker.send_signal(signal.SIGINT)
    _, err = worker.communicate()
    assert "Traceback" not in err
    # Between two trials the first signal ends the worker before the second one comes.
    assert worker.returncode in (130, 0)
    status = shell.status()
    assert status["running"] == 0
    assert status["done"] < 8


def test_a_worker_on_each_device_of_this_machine(shell: Shell) -> None:
    """Where there is no GPU it is one; the signal goes through, and so does the exit code."""
    crew = shell.start("work", "served", "--all-devices", "--grace", "600")
    shell.wait_for_images(2, crew)
    crew.send_signal(signal.SIGTERM)
    out, err = crew.communicate()
    assert crew.returncode == 0, err
    assert "workers   " in out
    status = shell.status()
    assert 0 < status["done"] < 8
    assert status["running"] == 0
    out = shell.call("work", "served", "--all-devices", "--max-trials", "1", "--idle-exit")
    assert "failed" not in out
    assert shell.status()["done"] > status["done"]


def test_the_first_worker_that_fails_gives_its_exit_code_and_last_line(
    shell: Shell, url: str
) -> None:
    storage = Storage(url)
    storage.enter(
        load(storage, "served").incarnation,
        "other",
        machine="m",
        host="h",
        pid=1,
        hardware={"device": "cuda Other"},
    )
    crew = shell.start("work", "served", "--all-devices", "--idle-exit")
    out, _ = crew.communicate()
    assert crew.returncode == 2
    assert "worker-0.err: error: study 'served' was begun on other hardware" in out


def test_several_workers_by_one_command(shell: Shell) -> None:
    shell.call("run", "served.toml", "--workers", "2")
    report = json.loads((shell.folder / "runs" / "served" / "report.json").read_text())
    assert (report["trials"], report["budget"]) == (8, 8)
    assert report["verdict"] in ("improved", "not_shown", "worse", "suspicious")
    assert len(shell.status()["workers"]) == 2
