"""How a run is watched and how it ends: for a person, for a script, and when interrupted."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from qsched.api import _announced
from qsched.proof.outcome import keep
from qsched.service.interrupts import Interrupts
from qsched.service.storage import Storage
from qsched.service.stored_study import create, load
from tests.support import fakes
from tests.support.command import Qsched, one_line
from tests.support.outcomes import proof


def test_a_script_learns_the_verdict(qsched: Qsched, tmp_path: Path) -> None:
    """From the exit code, and from the JSON, which is all that is printed."""
    file = str(fakes.study_file(tmp_path / "files", trials=2))
    code, out, err = qsched("run", file, "--json", "--require", "improved")
    report = json.loads(out)
    assert report == json.loads(Path("runs/fake/report.json").read_text(encoding="utf-8"))
    assert report["verdict"] != "improved"  # two trials of captions that say nothing
    assert (code, err) == (1, "")
    assert qsched("run", file, "--require", "best")[0] == 2


def test_a_first_signal_is_answered_while_the_batch_goes_on() -> None:
    interrupts, said = Interrupts(grace=0.0), threading.Event()
    with interrupts.handled(), _announced(interrupts, said.set):
        assert not said.wait(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        assert said.wait(10)


def test_status_of_one_study_says_what_there_is_to_decide(qsched: Qsched, finished: Path) -> None:
    code, out, _ = qsched("status", "fake")
    assert code == 0
    assert "verdict        -\n" in out
    assert "time left      about" in out  # of the proof
    keep(load(Storage(f"sqlite:///{finished}"), "fake"), proof("improved"))
    code, out, _ = qsched("status", "fake")
    assert "verdict        improved\n               It is so.\n" in out
    assert "coefficients   c_eps 1.1, " in out
    assert f"database       {finished}" in out
    assert "time left" not in out
    assert "look at" not in out
    assert qsched("report", "fake")[0] == 0
    page = Path("runs/fake/report.html").resolve()
    assert f"look at        {page}\n" in qsched("status", "fake")[1]
    seen = json.loads(qsched("status", "fake", "--json")[1])
    assert (seen["verdict"], seen["sentence"], seen["seconds_left"]) == (
        "improved",
        "It is so.",
        0.0,
    )
    assert seen["coefficients"]["model"][0] == 1.1
    assert "improved" in qsched("status")[1]


def test_watching_ends_when_nothing_is_left(qsched: Qsched, finished: Path) -> None:
    study = load(Storage(f"sqlite:///{finished}"), "fake")
    later = threading.Timer(1.0, lambda: keep(study, proof("worse")))
    later.start()
    code, out, _ = qsched("status", "fake", "--watch")
    later.join()
    assert code == 0
    assert out.index("verdict        -\n") < out.index("verdict        worse\n")
    assert out.count("6/6") == 2  # said anew because something changed, and for no other reason
    assert qsched("status", "--watch", "--json")[0] == 2
    assert "no studies yet" in qsched("status", "--watch", "--storage", "sqlite:///none.db")[1]


def test_an_outcome_that_cannot_be_read_stops_no_other_study(
    qsched: Qsched, finished: Path, tmp_path: Path
) -> None:
    storage = Storage(f"sqlite:///{finished}")
    create(storage, fakes.study(tmp_path / "files", name="other"))
    study = load(storage, "fake")
    storage.conclude(study.incarnation, {"study": "fake", "verdict": "great"})
    code, out, _ = qsched("status")
    assert code == 0
    assert "fake: study 'fake': its outcome can't be read" in " ".join(out.split())
    assert "other" in out
    assert "can't be read" in one_line(qsched("status", "fake")[2])


def completed(words: str, folder: Path) -> list[str]:
    """What bash offers for the last word."""
    done = subprocess.run(
        [Path(sys.executable).with_name("qsched")],
        env={
            **os.environ,
            "_QSCHED_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_the_shell_completes_the_names_of_studies(finished: Path, tmp_path: Path) -> None:
    create(Storage(f"sqlite:///{finished}"), fakes.study(tmp_path / "fakes", name="fake-two"))
    (tmp_path / "fake.toml").touch()
    for command in ("status", "export", "delete", "compare"):
        assert completed(f"qsched {command} fa", tmp_path) == ["fake", "fake-two"]
    for command in ("run", "work"):
        offered = completed(f"qsched {command} fa", tmp_path)
        assert offered == ["fake", "fake-two", "fake.toml", "fakes/"]
    assert completed("qsched status --storage sqlite:///none.db fa", tmp_path) == []
    assert not (tmp_path / "none.db").exists()


def test_a_quiet_worker_says_nothing_and_a_verbose_one_each_trial(
    qsched: Qsched, tmp_path: Path
) -> None:
    file = str(fakes.study_file(tmp_path / "files", trials=3))
    assert qsched("create", file)[0] == 0
    one = ("work", "fake", "--max-trials", "1")
    code, out, err = qsched(*one, "--quiet")
    assert (code, out, err) == (0, "trials    1/3\n", "")
    level = logging.getLogger("qsched").level
    code, out, _ = qsched(*one, "--verbose")
    assert code == 0
    assert re.search(r"\d\d:\d\d:\d\d slot 1: -?\d", out)
    assert logging.getLogger("qsched").level == level
    assert qsched(*one, "--quiet", "--verbose")[0] == 2
