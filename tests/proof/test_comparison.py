"""Studies beside each other: paired by caption and seed, in one study's units, or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qsched import api
from qsched.errors import StudyError
from qsched.proof.comparison import SETS, compare
from qsched.proof.outcome import JAQ, Proof, Verdict, keep, kept
from qsched.report import artifacts
from qsched.report import compare as comparisons
from qsched.service.evaluator import Evaluator
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy, create
from qsched.service.worker import Worker
from qsched.statistics import paired_interval
from tests.support import fakes
from tests.support.html import Reader
from tests.support.outcomes import METRIC, pictures, proof

METRICS = ("demo-alignment", "demo-quality", "pixels")


def values(seed: int) -> dict[str, dict[str, tuple[float, ...]]]:
    """Of three captions with two seeds each; what is shared by all studies is the same."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    return {
        name: {m: tuple((own if name == "calibrated" else shared).normal(size=6)) for m in METRICS}
        for name in SETS
    }


def validated(folder: Path, name: str, seed: int, **changes: object) -> StoredStudy:
    """A finished study of the database with a made-up verdict."""
    definition = fakes.study(folder / name, name=name, preset="standardised")
    storage = Storage(f"sqlite:///{folder}/storage/qsched.db")
    stored = create(storage, definition)
    assert Worker(
        stored, Evaluator(fakes.FakeGenerator(), fakes.FakeScorers(), definition.calibration)
    ).run()
    made = replace(
        proof("improved", held_out={JAQ: METRIC}, distances={}),
        study=name,
        per_image=values(seed),
        **changes,  # type: ignore[arg-type]
    )
    keep(stored, made)
    return stored


@pytest.fixture
def two(tmp_path: Path) -> list[StoredStudy]:
    return [
        validated(tmp_path, "first", 1),
        validated(tmp_path, "second", 2, verdict=Verdict.WORSE),
    ]


def test_differences_are_those_of_the_same_caption_and_seed(two: list[StoredStudy]) -> None:
    found = compare(two)
    captions = [prompt.text for prompt in two[0].definition.held_out]
    expected = paired_interval(
        values(2)["calibrated"]["pixels"], values(1)["calibrated"]["pixels"], captions
    )
    (first, second) = [each for each in found.rows if each.metric == "pixels"]
    assert (first.difference, second.difference) == (None, expected)
    assert second.means["calibrated"] == pytest.approx(np.mean(values(2)["calibrated"]["pixels"]))
    assert second.means["identity"] == first.means["identity"]


def test_jaq_is_the_first_studys_in_its_units(two: list[StoredStudy]) -> None:
    found = compare(two)
    assert found.rows[0].metric == JAQ
    objective = two[0].objective()
    assert objective.standardised
    means = [float(objective.values(values(seed)["calibrated"]).mean()) for seed in (1, 2)]
    assert [each.means["calibrated"] for each in found.rows if each.metric == JAQ] == means
    (difference,) = [e.difference for e in found.rows if e.metric == JAQ and e.difference]
    assert difference.mean == pytest.approx(means[1] - means[0])


def test_what_can_not_be_compared_is_said(tmp_path: Path, two: list[StoredStudy]) -> None:
    with pytest.raises(StudyError, match="expected two studies or more, each once"):
        compare([two[0], two[0]])
    older = validated(tmp_path, "older", 3)
    keep(older, replace(proof("worse"), study="older"))
    with pytest.raises(StudyError, match="lacks the values of its images; qsched validate older"):
        compare([two[0], older])
    other = fakes.study(tmp_path / "x", name="other", seed=0)
    moved = replace(other, held_out=other.held_out[:4])
    stored = create(two[0].storage, moved)
    with pytest.raises(StudyError, match="'other' has no verdict yet"):
        compare([two[0], stored])
    keep(stored, replace(proof("worse"), study="other", per_image=cut(values(4), 4)))
    with pytest.raises(StudyError, match="6 and 4 images, 4 of them of the same caption and seed"):
        compare([two[0], stored])


def cut(
    found: dict[str, dict[str, tuple[float, ...]]], images: int
) -> dict[str, dict[str, tuple[float, ...]]]:
    return {
        name: {metric: each[:images] for metric, each in listed.items()}
        for name, listed in found.items()
    }


def test_a_metric_of_other_weights_is_not_compared(tmp_path: Path) -> None:
    made = [
        validated(tmp_path, name, seed, fingerprint={"weights.pixels": name})
        for seed, name in enumerate(("a", "b"))
    ]
    assert {each.metric for each in compare(made).rows} == {JAQ, "demo-alignment", "demo-quality"}


def test_the_table_fits_and_the_page_shows_both(
    tmp_path: Path, two: list[StoredStudy], monkeypatch: pytest.MonkeyPatch
) -> None:
    for study in two:
        stored: Proof | None = kept(study)
        assert stored is not None
        artifacts.conclude(study, stored, pictures())
    path, found = api.compare(two, str(tmp_path / "out"))
    lines = comparisons.terminal(found, 80).plain.split("\n")
    assert max(map(len, lines)) <= 80
    assert [line.split()[:2] for line in lines[1:3]] == [["first", "improved"], ["second", "worse"]]
    assert sum("[" in line for line in lines) == 4  # each metric's, and JAQ's
    page = Reader(path.read_text(encoding="utf-8"))
    assert "first" in page.text("studies")
    assert page.text("held-out").count("second") == 4
    labels = [each["alt"].partition(":")[0] for each in page.all("img")][:3]
    assert labels == ["full precision, first", "quantized, first", "calibrated, first"]
    assert len(page.all("img")) == 3 * 3  # the second study's are the same pictures
    assert not page.all("script")
    assert json.loads(json.dumps(found.to_dict()))["beside"] == "first"
