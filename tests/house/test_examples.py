"""The programs of examples/ run as they stand, on a study that has a verdict."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from qsched.scoring.scorers import Scorer
from qsched.testing.scorers import ScorerContract
from tests.support import fakes_light

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PIPELINE = ROOT / "qsched" / "demo" / "pipeline"
CAPTION = "a large shaded crab on a teal background"

pytestmark = pytest.mark.slow


def run(folder: Path, *arguments: str | Path, path: Path = ROOT) -> str:
    """Standard output of a Python program that is called in `folder` and ends well."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, path)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where `qsched run` was called: its database, and runs/small."""
    folder = tmp_path_factory.mktemp("a folder")
    study = fakes_light.study_file(folder / "studies", name="small", trials=4)
    run(folder, "-m", "qsched", "run", study)
    return folder


def test_an_exported_scheduler_samples_in_plain_diffusers(finished: Path) -> None:
    run(finished, "-m", "qsched", "export", "small", "--force", "--out", "calibrated")
    out = run(
        finished,
        *(EXAMPLES / "plain_diffusers.py", "calibrated/scheduler", PIPELINE, CAPTION, "crab.png"),
    )
    assert out.startswith("c_eps, c_x:")
    assert (finished / "crab.png").stat().st_size > 1000


def test_plain_diffusers_needs_no_qsched() -> None:
    assert "import qsched" not in (EXAMPLES / "plain_diffusers.py").read_text()


def test_optuna_and_pandas_read_the_same_database(finished: Path) -> None:
    url = f"sqlite:///{finished}/storage/qsched.db"
    out = run(finished, EXAMPLES / "optuna_and_pandas.py", "small", url)
    assert "is the best of 4" in out
    assert "c_eps" in out.partition("rank correlation")[2]


def test_a_pipeline_of_ones_own_runs_by_itself(tmp_path: Path) -> None:
    run(tmp_path, EXAMPLES / "own_pipeline.py", "crab.png")
    assert (tmp_path / "crab.png").stat().st_size > 1000


def test_a_study_calls_a_pipeline_of_ones_own(tmp_path: Path) -> None:
    study = fakes_light.study_file(tmp_path, name="own", trials=1)
    sampling = "guidance_scale = 0.0\nheight = 64\nwidth = 64\ncall = { max_sequence_length = 0 }"
    own = '"own_pipeline:pipeline"\npart = "transformer"'
    text = study.read_text().replace('"demo"', own).replace("steps = 4", f"steps = 4\n{sampling}")
    study.write_text(text)
    run(tmp_path, "-m", "qsched", "run", study, path=EXAMPLES)
    assert "own_pipeline:pipeline" in (tmp_path / "runs" / "own" / "README.md").read_text()


class TestTheScorerOfOnesOwn(ScorerContract):
    def scorer(self) -> Scorer:
        made: Scorer = runpy.run_path(str(EXAMPLES / "own_scorer" / "sharp.py"))["Sharpness"]()
        return made


def test_a_scorer_of_ones_own_is_searched_and_held_out(tmp_path: Path) -> None:
    study = EXAMPLES / "own_scorer" / "study.toml"
    assert "12 trials" in run(tmp_path, "-m", "qsched", "check", study)
    run(tmp_path, "-m", "qsched", "run", study)
    report = json.loads((tmp_path / "runs" / "own-scorer" / "report.json").read_text())
    assert "sharp:Sharpness" in report["held_out"]
    assert any("sharp:Sharpness" in key for key in report["fingerprint"])
