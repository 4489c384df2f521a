"""What optuna-dashboard gets to show: contact sheets, note, plots; and that it only shows."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna_dashboard import get_note
from optuna_dashboard._custom_plot_data import list_graph_object_ids
from PIL import Image
from torch import Tensor

from qsched.cli.dashboard import application
from qsched.errors import ConfigError
from qsched.pictures.sheets import ROWS, Pictures
from qsched.prompts import Prompt
from qsched.proof import outcome
from qsched.report import artifacts, gallery
from qsched.schedule.coefficients import Coefficients
from qsched.service import stored_study as studies
from qsched.service.evaluator import Evaluator
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.worker import Worker
from qsched.study.study import load_study
from tests.support import fakes
from tests.support.outcomes import proof


@pytest.fixture
def finished(tmp_path: Path, url: str) -> StoredStudy:
    """A study with a gallery of its first two trials, on each kind of database."""
    path = fakes.study_file(tmp_path / "files", preset="standardised", trials=12)
    store = json.dumps(str(tmp_path / "artifacts"))
    path.write_text(path.read_text() + f"[gallery]\ntrials = 2\nstore = {store}\n")
    study = studies.create(Storage(url), load_study(path))
    evaluator = Evaluator(fakes.FakeGenerator(), fakes.FakeScorers(), study.definition.calibration)
    assert Worker(study, evaluator, gallery=gallery.Gallery(study)).run()
    gallery.publish(study)
    return study


def call(app: Any, method: str, path: str, cookie: str = "") -> tuple[str, bytes]:
    """One request: (status, body)."""
    seen: list[str] = []
    environ = {
        "HTTP_HOST": "localhost",
        "HTTP_COOKIE": cookie,
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.input": io.BytesIO(b"{}"),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
        "CONTENT_LENGTH": "2",
        "CONTENT_TYPE": "application/json",
    }
    body = b"".join(app(environ, lambda status, headers, *rest: seen.append(status)))
    return seen[0], body


def test_the_identity_the_first_and_every_new_best_have_a_contact_sheet(
    finished: StoredStudy,
) -> None:
    storage = finished.storage.database.optuna
    trials = finished.trials.study.get_trials()
    pictured = {t.number for t in trials if get_all_artifact_meta(t, storage=storage)}
    values = [t.value or 0.0 for t in trials]
    bests = {i for i, value in enumerate(values) if i and value > max(values[:i])}
    assert pictured == {0, 1, 2} | bests
    assert all(len(get_all_artifact_meta(t, storage=storage)) <= 1 for t in trials)


def test_trials_carry_what_a_person_asks_for(finished: StoredStudy) -> None:
    trial = finished.trials.study.get_trials()[5]
    assert {"slot", "attempt", "worker", "seconds", "images"} <= trial.user_attrs.keys()
    assert {"demo-alignment", "demo-quality"} <= trial.user_attrs.keys()
    assert list(trial.intermediate_values) == [2, 4, 6]
    assert trial.intermediate_values[6] == pytest.approx(trial.value)


def test_the_dashboard_shows_and_changes_nothing(finished: StoredStudy, tmp_path: Path) -> None:
    app = application(finished.storage, artifacts=str(tmp_path / "artifacts"))
    status, body = call(app, "GET", "/api/studies")
    assert status.startswith("200")
    (summary,) = json.loads(body)["study_summaries"]
    number = summary["study_id"]
    status, body = call(app, "GET", f"/api/studies/{number}")
    detail = json.loads(body)
    assert len(detail["plotly_graph_objects"]) == 2
    trial = detail["trials"][0]
    (artifact,) = trial["artifacts"]
    path = f"/artifacts/{number}/{trial['trial_id']}/{artifact['artifact_id']}"
    status, picture = call(app, "GET", path)
    assert status.startswith("200")
    assert Image.open(io.BytesIO(picture)).width > 100
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        status, body = call(app, method, f"/api/studies/{number}")
        assert status.startswith("405")
        assert b"--writable" in body
    assert finished.storage.study_names() == ["fake"]


def test_a_writable_dashboard_changes(finished: StoredStudy, tmp_path: Path) -> None:
    app = application(
        finished.storage, artifacts=str(tmp_path / "artifacts"), writable=True, token="key"
    )
    number = finished.trials.study._study_id
    status, _ = call(app, "DELETE", f"/api/studies/{number}", "qsched_80=key")
    assert status.startswith("2")
    assert finished.storage.database.optuna.get_all_studies() == []


def test_the_note_says_where_the_study_stands(finished: StoredStudy) -> None:
    words = get_note(finished.trials.study)
    assert "12 of 12 trials, 72 images scored" in words
    assert "Not validated yet" in words
    outcome.keep(finished, proof("not_shown", held_out={}))
    gallery.publish(finished)
    assert "**not shown**: It is so." in get_note(finished.trials.study)
    outcome.keep(finished, proof())
    gallery.publish(finished)
    row = "| pixels (unseen) | 3.000 | 1.000 | 1.500 | +0.500 [+0.250, +0.750] |"
    assert row in get_note(finished.trials.study)


def test_the_held_out_pictures_are_the_studys_artifact(
    finished: StoredStudy, tmp_path: Path
) -> None:
    rows = {row: np.zeros((2, 8, 8, 3), np.uint8) for row in ROWS}
    artifacts.keep(finished, Pictures(("an owl", "a cat"), rows, {}))
    app = application(finished.storage, artifacts=str(tmp_path / "artifacts"))
    number = finished.trials.study._study_id
    _, body = call(app, "GET", f"/api/studies/{number}")
    (artifact,) = json.loads(body)["artifacts"]
    assert artifact["filename"] == "held-out.png"
    status, picture = call(app, "GET", f"/artifacts/{number}/{artifact['artifact_id']}")
    assert status.startswith("200")
    assert Image.open(io.BytesIO(picture)).size == (16, 24)


def test_each_step_of_a_larger_search_has_its_landscape(tmp_path: Path) -> None:
    path = fakes.study_file(tmp_path)
    path.write_text(path.read_text().replace("[search]", '[search]\nparametrisation = "ramp2"'))
    study = studies.create(Storage(f"sqlite:///{tmp_path}/q.db"), load_study(path))
    evaluator = Evaluator(fakes.FakeGenerator(), fakes.FakeScorers(), study.definition.calibration)
    assert Worker(study, evaluator).run()
    gallery.publish(study)
    attributes = study.storage.database.optuna.get_study_system_attrs(study.trials.study._study_id)
    assert set(list_graph_object_ids(attributes)) == {
        "coefficients",
        "landscape_first",
        "landscape_last",
    }


def test_pictures_go_with_their_study(finished: StoredStudy, tmp_path: Path) -> None:
    assert list((tmp_path / "artifacts").iterdir())
    artifacts.clear(finished)
    assert not list((tmp_path / "artifacts").iterdir())


def test_a_contact_sheet_enlarges_without_blur() -> None:
    images = np.zeros((5, 3, 64, 64))
    images[0, 0] = 1.0
    sheet = gallery.contact_sheet(images, "trial 3")
    assert sheet.getcolors(maxcolors=100_000) is not None
    red = np.asarray(sheet)
    assert ((red == [255, 0, 0]).all(axis=2)).sum() == 128 * 128


class OneChannel(fakes.FakeGenerator):
    """Its images are no pictures."""

    def generate(
        self, prompts: Sequence[Prompt], coefficients: Coefficients | Sequence[Coefficients]
    ) -> Tensor:
        return super().generate(prompts, coefficients).view(len(prompts), 1, 3, 1)


def test_a_picture_that_fails_loses_no_trial(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = studies.create(Storage(f"sqlite:///{tmp_path}/q.db"), fakes.study(tmp_path))
    evaluator = Evaluator(OneChannel(), fakes.FakeScorers(), study.definition.calibration)
    assert Worker(study, evaluator, gallery=gallery.Gallery(study)).run()
    assert study.status().done == 6
    assert "no contact sheet of trial 0: TypeError: " in caplog.text
    assert "Traceback" not in caplog.text


def test_a_bucket_is_a_bucket() -> None:
    with pytest.raises(ConfigError, match="expected s3://bucket without a path"):
        artifacts.artifact_store("s3://bucket/path")


def test_looking_makes_no_folder(finished: StoredStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where none can be made."""
    monkeypatch.chdir("/sys")
    status, _ = call(application(finished.storage, artifacts="x"), "GET", "/api/studies")
    assert status.startswith("200")
