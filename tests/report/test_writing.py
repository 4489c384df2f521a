"""The pictures and numbers that a study leaves: true to the pixel, readable, complete."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsched import api
from qsched.pictures.sheets import KEPT_SIDE, ROWS, Pictures
from qsched.proof import outcome
from qsched.report import artifacts, writing
from qsched.report.writing import Part
from qsched.schedule.coefficients import Coefficients
from qsched.service import stored_study as studies
from qsched.service.evaluator import Evaluator
from qsched.service.status import Status
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.worker import Worker
from tests.support import fakes
from tests.support.outcomes import pictures, proof

OTHER = Coefficients.ramp(4, 1.2, 0.9)


@pytest.fixture
def study(tmp_path: Path) -> StoredStudy:
    """A study whose budget is spent."""
    stored = studies.create(Storage(f"sqlite:///{tmp_path}/q.db"), fakes.study(tmp_path))
    evaluator = Evaluator(
        fakes.FakeGenerator(),
        fakes.FakeScorers(),
        stored.definition.calibration,
    )
    assert Worker(stored, evaluator).run()
    return stored


def concluded(study: StoredStudy, folder: Path, found: outcome.Proof, seen: Pictures) -> None:
    """What `api.validate` leaves."""
    artifacts.conclude(study, found, seen)
    writing.write(folder, study, ~Part(0), pictures=seen)


@pytest.mark.parametrize(("verdict", "published"), [("improved", 1.1), ("not_shown", 1.0)])
def test_everything_is_written_and_agrees(
    tmp_path: Path, study: StoredStudy, verdict: str, published: float
) -> None:
    out, found = tmp_path / "out", proof(verdict)
    concluded(study, out, found, pictures())
    document = json.loads((out / "report.json").read_text())
    assert document == found.report()
    assert document["study"] == study.name
    assert document["verdict"] == verdict
    assert document["coefficients"]["model"][0] == pytest.approx(published)
    for key in ("full_precision", "identity", "calibrated", "difference", "interval", "control"):
        assert key in document["held_out"]["jaq"]
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "It is so." in text
    assert text.count("<img ") == 3 * 3
    taken = Coefficients.load(out / "coefficients.json")
    assert taken.model[0] == pytest.approx(published)
    config = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert config["model_coefficients"] == list(taken.model)
    for name in ("images.png", "history.png"):
        assert Image.open(out / name).width > 300
    kept = outcome.kept(study)
    assert kept
    assert replace(kept, pictures=None) == found
    assert kept.run == found.run == document["run"]
    assert f'<meta name="qsched-run" content="{found.run}">' in text


def test_the_report_is_made_again_from_the_database(tmp_path: Path, study: StoredStudy) -> None:
    concluded(study, tmp_path / "out", proof(), pictures())
    elsewhere = studies.load(Storage(study.storage.database.url.render_as_string()), study.name)
    paths, content = api.write_report(elsewhere, tmp_path / "made" / "again")
    assert [path.name for path in paths] == ["report.html", "report.json"]
    for path in paths:
        assert path.read_text() == (tmp_path / "out" / path.name).read_text()
    assert content == json.loads(paths[1].read_text())


def test_a_report_is_of_one_moment(
    tmp_path: Path, study: StoredStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed is what was written, while workers go on."""
    status = StoredStudy.status

    def growing(study: StoredStudy) -> Status:
        study.extend("+1")
        return status(study)

    monkeypatch.setattr(StoredStudy, "status", growing)
    paths, content = api.write_report(study, tmp_path / "out")
    assert content == json.loads(paths[1].read_text())


def test_the_held_out_pictures_come_back_to_the_pixel(tmp_path: Path, study: StoredStudy) -> None:
    first, second = pictures(), pictures(columns=2)
    for images in second.rows.values():
        images += 1
    for made in (first, second):  # the second takes the first one's place
        concluded(study, tmp_path / "out", proof(), made)
        found = artifacts.kept(study, proof())
        assert isinstance(found, Pictures)
        assert found.captions == made.captions
        assert found.rows.keys() == made.rows.keys()
        for row, images in made.rows.items():
            assert np.array_equal(found.rows[row], images), row
        assert len(list((tmp_path / "artifacts").iterdir())) == 1
    artifacts.clear(study)
    assert not list((tmp_path / "artifacts").iterdir())


def test_where_there_are_no_pictures_the_page_says_why(tmp_path: Path, study: StoredStudy) -> None:
    def words() -> str:
        (page, _), _ = api.write_report(study, tmp_path / "out")
        text = page.read_text()
        assert "<img " not in text
        return text

    assert "made when the study is validated" in words()
    outcome.keep(study, proof())
    assert "were not kept; qsched validate fake" in words()
    artifacts.conclude(study, proof(), pictures(coefficients=OTHER))
    assert "belong to an earlier verdict" in words()
    artifacts.conclude(study, proof(), pictures())
    (stored,) = (tmp_path / "artifacts").iterdir()
    stored.write_bytes(stored.read_bytes()[:100])
    assert "can&#39;t be read from here" in words()
    stored.unlink()  # as on a machine that has the database only
    assert "can&#39;t be read from here" in words()


def test_a_picture_that_a_person_removed_is_gone(tmp_path: Path, study: StoredStudy) -> None:
    """optuna-dashboard leaves null in the artifact's place."""
    concluded(study, tmp_path / "out", proof(), pictures())
    database, number = study.storage.database.optuna, study.trials.study._study_id
    (key,) = (k for k in database.get_study_system_attrs(number) if k.startswith("artifacts:"))
    database.set_study_system_attr(number, key, "null")
    assert isinstance(artifacts.kept(study, proof()), str)
    artifacts.clear(study)


def test_a_sheet_keeps_large_pictures_smaller(tmp_path: Path) -> None:
    rows = {row: np.full((2, 600, 1200, 3), 7, np.uint8) for row in ROWS}
    Pictures(("ä", "日本"), rows, {}).write_sheet(tmp_path / "sheet.png")
    with (tmp_path / "sheet.png").open("rb") as file:
        found = Pictures.read_sheet(file)
    assert found.captions == ("ä", "日本")
    assert found.rows["identity"].shape == (2, KEPT_SIDE // 2, KEPT_SIDE, 3)


def test_another_file_is_no_sheet(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    (tmp_path / "other.txt").write_text("no picture at all")
    for path in (tmp_path / "other.png", tmp_path / "other.txt"):
        with path.open("rb") as file, pytest.raises(ValueError, match="not a sheet"):
            Pictures.read_sheet(file)


def test_pixels_are_enlarged_without_blur(tmp_path: Path) -> None:
    shown = pictures()
    shown.write(tmp_path / "images.png", side=64)
    sheet = np.asarray(Image.open(tmp_path / "images.png").convert("RGB"))
    for row in ROWS:
        for picture in shown.rows[row]:
            enlarged = picture.repeat(4, axis=0).repeat(4, axis=1)
            assert _contains(sheet, enlarged), row
    left_out = shown.rows["full_precision_calibrated"][0].repeat(4, axis=0).repeat(4, axis=1)
    assert not _contains(sheet, left_out)


def _contains(sheet: np.ndarray, part: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(sheet[:, :, 0], part.shape[:2])
    corner = (windows[..., 0, 0] == part[0, 0, 0]) & (windows[..., -1, -1] == part[-1, -1, 0])
    return any(np.array_equal(windows[y, x], part[..., 0]) for y, x in np.argwhere(corner))


def test_large_images_are_reduced(tmp_path: Path) -> None:
    small = pictures(columns=1)
    rows = {row: made.repeat(64, axis=1).repeat(64, axis=2) for row, made in small.rows.items()}
    Pictures(small.captions, rows, {}).write(tmp_path / "images.png", side=100)
    assert Image.open(tmp_path / "images.png").width < 400


def test_each_picture_has_its_caption_and_each_row_its_label(tmp_path: Path) -> None:
    """White pictures, so that all that is dark is text: two columns of it, and three rows."""
    shown = pictures(columns=2)
    for picture in shown.rows.values():
        picture[:] = 255
    shown.write(tmp_path / "images.png")
    dark = np.asarray(Image.open(tmp_path / "images.png").convert("L")) < 128
    assert _runs(dark[:, 150:], axis=1) >= 2  # a long caption takes several lines
    assert _runs(dark[:, 150:], axis=0, gap=12) == 2
    assert _runs(dark[:, :150], axis=1, gap=60) == 3


def _runs(dark: np.ndarray, axis: int, gap: int = 1) -> int:
    """Stretches of rows or columns with a dark pixel that lie more than `gap` apart."""
    filled = np.asarray(dark.any(axis=axis))
    places = np.flatnonzero(filled)
    return 1 + int((np.diff(places) > gap).sum())
