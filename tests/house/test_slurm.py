"""The Slurm script under a real Slurm: it starts, is cancelled, and is queued again if need be."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsched.service import stored_study as studies
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from tests.support import fakes_light as fakes
from tests.support.slurm import Cluster

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm_worker.sbatch"
SIZES = ("--array=0-0", "--gpus=0", "--mem=100", "--cpus-per-task=1", "--time=10")

QSCHED = f"""#!{sys.executable}
import os, signal, sys, time
if sys.argv[1] != "work":
    os.execv(sys.executable, [sys.executable, "-m", "qsched", *sys.argv[1:]])
def stop(*_):
    print("asked to stop", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("working on", *sys.argv[2:], flush=True)
while not os.path.exists("enough"):
    time.sleep(0.05)
"""
"""A worker that is there at once, and all other commands."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()


class Clone:
    """A fresh clone, as far as the script sees it, and a study with trials to do."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        for name in (".venv/bin", "deploy"):
            (folder / name).mkdir(parents=True)
        shutil.copy(SCRIPT, folder / "deploy")
        (folder / ".venv/bin/qsched").write_text(QSCHED)
        (folder / ".venv/bin/qsched").chmod(0o755)
        url = f"sqlite:///{folder}/q.db"
        self.study: StoredStudy = studies.create(Storage(url), fakes.study(folder, trials=2))
        cluster.environment |= {"QSCHED_STORAGE": url, "PYTHONPATH": os.pathsep.join(sys.path)}

    def submitted(self) -> str:
        """The number of a job whose worker works."""
        said = self.cluster.call(
            "sbatch", *SIZES, f"deploy/{SCRIPT.name}", "fake", folder=self.folder
        )
        number = said.rpartition(" ")[2]
        assert number.isdecimal(), said
        self.cluster.wait(lambda: "working on fake --idle-exit" in self.log(), f"job {number}")
        return number

    def log(self) -> str:
        """What the jobs said, beside the place that they were submitted from."""
        return "".join(path.read_text() for path in self.folder.glob("slurm-*_0.log"))

    def ended(self, number: str, *states: str) -> dict[str, str]:
        """The job once it is in one of these states."""
        self.cluster.wait(
            lambda: self.cluster.job(number)["JobState"] in states, f"{states} of job {number}"
        )
        return self.cluster.job(number)


@pytest.fixture
def clone(cluster: Cluster, tmp_path: Path) -> Iterator[Clone]:
    clone = Clone(cluster, tmp_path)
    yield clone
    cluster.call("scancel", "--user", str(os.getuid()))


def test_workers_start_in_a_fresh_clone_and_end_with_the_study(clone: Clone) -> None:
    number = clone.submitted()
    (clone.folder / "enough").touch()
    job = clone.ended(number, "COMPLETED", "FAILED")
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0")


def test_a_cancelled_job_is_gone(clone: Clone) -> None:
    number = clone.submitted()
    clone.cluster.call("scancel", number)
    job = clone.ended(number, "CANCELLED")
    clone.cluster.wait(lambda: "asked to stop" in clone.log(), "the worker's end")
    assert clone.cluster.job(number)["JobState"] == "CANCELLED"
    assert job["Restarts"] == "0"


@pytest.mark.parametrize("left", [True, False], ids=["trials left", "nothing left"])
def test_before_its_time_is_up_it_is_queued_again_for_what_is_left(
    clone: Clone, left: bool
) -> None:
    """`--signal` itself counts in minutes: the same signal is sent by hand, the same way."""
    number = clone.submitted()
    if not left:
        while slot := clone.study.queue.claim("w", 60):
            clone.study.queue.begin(
                slot, 60, vector=clone.study.propose(slot.number).vector, trial=1
            )
            clone.study.queue.finish(slot, 0.0)
    clone.cluster.call("scancel", "--signal=USR1", "--batch", number)
    job = clone.ended(number, "PENDING" if left else "COMPLETED", "FAILED")
    assert job["Restarts"] == str(int(left))
    assert job["JobState"] == ("PENDING" if left else "COMPLETED")
    assert "asked to stop" in clone.log()


def test_the_signal_that_is_sent_is_the_one_that_is_understood() -> None:
    text = SCRIPT.read_text()
    assert "#SBATCH --signal=B:USR1@" in text
    assert "' USR1" in text
