"""The shipped study, end to end, as a person runs it: the command line, in an awkward folder."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qsched.demo.captions import prompt_lists
from qsched.schedule.coefficients import Coefficients

QSCHED = Path(sys.executable).with_name("qsched")
CALIBRATION, HELD_OUT = prompt_lists()
STUDY = f"""
name = "little"
[model]
name = "demo"
[sampling]
steps = 2
[quantization]
scheme = "w4a4"
[objective]
preset = "standardised"
terms = [{{ scorer = "demo-alignment" }}, {{ scorer = "demo-quality", weight = 2.0 }}]
[search]
trials = 5
[prompts]
calibration = {json.dumps(CALIBRATION[:6])}
held_out = {json.dumps(HELD_OUT[:6])}
[validation]
metrics = ["similarity", "attributes", "pixels"]
[execution]
batch_size = 2
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spaces, quotes, brackets, umlauts and a percent sign, in every path."""
    path = tmp_path_factory.mktemp("demo") / 'it\'s [a] "näme" & 100% (new)'
    path.mkdir()
    (path / "my study.toml").write_text(STUDY, encoding="utf-8")
    return path


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [QSCHED, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def environment() -> dict[str, str]:
    """Without a network, and with as many columns as a log has."""
    chosen = {"HF_HUB_OFFLINE": "1", "COLUMNS": "120", "OMP_WAIT_POLICY": "passive"}
    return {**os.environ, **chosen}


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> subprocess.CompletedProcess[str]:
    return call(folder, "run", "my study.toml", "--out", "the results")


def test_it_runs_to_a_verdict(folder: Path, undisturbed: subprocess.CompletedProcess[str]) -> None:
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert "Traceback" not in undisturbed.stderr
    for words in ("trials    5/5", "similarity*", "c_eps", "images.png", "qsched.db"):
        assert words in undisturbed.stdout
    report = json.loads((folder / "the results" / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"] in ("improved", "not_shown", "worse", "suspicious")
    assert (report["budget"], report["trials"]) == (5, 5)
    assert report["images_generated"] == 5 * 6 + 6 * 6 * 2  # six sets of 6 prompts, 2 seeds
    tried = [row["value"] for row in report["candidates"]]
    assert len(tried) == 3
    assert tried == sorted(tried, reverse=True)
    assert report["best"]["slot"] != 0
    assert report["best"]["value"] in tried
    assert set(report["held_out"]) == {
        "jaq",
        "demo-alignment",
        "demo-quality",
        "similarity",
        "attributes",
        "pixels",
    }
    for row in report["held_out"].values():
        assert row["difference"] == pytest.approx(row["calibrated"] - row["identity"])
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    similarity = report["held_out"]["similarity"]
    assert similarity["full_precision"] == pytest.approx(1)
    assert similarity["identity"] < 0.999
    for picture in ("images.png", "history.png"):
        assert Image.open(folder / "the results" / picture).width > 500


def test_what_is_taken_away_is_what_was_proven(
    folder: Path, undisturbed: subprocess.CompletedProcess[str]
) -> None:
    report = json.loads((folder / "the results" / "report.json").read_text(encoding="utf-8"))
    taken = Coefficients.load(folder / "the results" / "coefficients.json")
    assert list(taken.model) == report["coefficients"]["model"]
    if report["verdict"] != "improved":
        assert taken.is_identity
    assert call(folder, "export", "little", "--out", "to go", "--force").returncode == 0
    forced = Coefficients.load(folder / "to go" / "coefficients.json")
    assert list(forced.model) == report["best"]["coefficients"]["model"]


def test_running_again_repeats_the_verdict_and_no_trial(
    folder: Path, undisturbed: subprocess.CompletedProcess[str]
) -> None:
    before = json.loads((folder / "the results" / "report.json").read_text(encoding="utf-8"))
    again = call(folder, "run", "my study.toml", "--out", "again")
    assert again.returncode == 0, again.stderr
    after = json.loads((folder / "again" / "report.json").read_text(encoding="utf-8"))
    assert after == before


def test_validate_is_the_same_proof(
    folder: Path, undisturbed: subprocess.CompletedProcess[str]
) -> None:
    done = call(folder, "validate", "little", "--out", "proof", "--json")
    assert done.returncode == 0, done.stderr
    document = (folder / "proof" / "report.json").read_text(encoding="utf-8")
    assert json.loads(done.stdout) == json.loads(document)
    for name in ("report.json", "coefficients.json", "images.png"):
        assert (folder / "proof" / name).read_bytes() == (
            folder / "the results" / name
        ).read_bytes()


def test_an_image_set_with_the_coefficients(
    folder: Path, undisturbed: subprocess.CompletedProcess[str]
) -> None:
    (folder / "two prompts.txt").write_text("\n".join(HELD_OUT[:2]), encoding="utf-8")
    coefficients = "the results/coefficients.json"
    done = call(
        folder,
        *("generate", "--model", "demo", "--quantization", "w4a4"),
        *("--coefficients", coefficients, "--prompts", "two prompts.txt", "--out", "my images"),
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in sorted((folder / "my images").glob("*.png"))] == [
        "00000.png",
        "00001.png",
    ]
    assert Image.open(folder / "my images" / "00000.png").size == (64, 64)


def committed(database: Path) -> int:
    """Batches' scores in the database of a running study; 0 while there is none yet."""
    if not database.exists():
        return 0
    try:
        with sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT count(*) FROM qsched_scores").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def values(folder: Path, url: str) -> dict[str, Any]:
    """What `status` says, without how long it took and who did it."""
    done = call(folder, "status", "little", "--json", "--storage", url)
    status: dict[str, Any] = json.loads(done.stdout)
    del status["seconds"], status["workers"]
    return status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_run_again_equals_undisturbed(
    folder: Path, undisturbed: subprocess.CompletedProcess[str], number: signal.Signals
) -> None:
    database = folder / f"{number.name}.db"
    arguments = ["run", "my study.toml", "--out", f"out {number.name}"]
    arguments += ["--storage", f"sqlite:///{database.name}"]
    with subprocess.Popen(
        [QSCHED, *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 300
        while committed(database) < 16:  # in the second trial: 12 scores are the first
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, err
        assert "nothing is lost" in out
        assert "stopping  finishing this batch; again to give it back" in out
    assert committed(database) >= 16
    assert values(folder, f"sqlite:///{database.name}")["done"] < 5
    resumed = call(folder, *arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming" in resumed.stdout
    expected = values(folder, "sqlite:///storage/qsched.db")
    assert values(folder, f"sqlite:///{database.name}") == expected
    reports = [
        json.loads((folder / out / "report.json").read_text(encoding="utf-8"))
        for out in ("the results", f"out {number.name}")
    ]
    for report in reports:
        del report["seconds"]
    assert reports[0] == reports[1]
