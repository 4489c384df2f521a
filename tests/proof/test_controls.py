"""Candidates and controls: which trials go through validation, and the companions beside them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from qsched import api
from qsched.demo.captions import prompt_lists
from qsched.errors import ConfigError, StudyError
from qsched.prompts import Prompt
from qsched.proof import controls
from qsched.schedule.coefficients import Coefficients
from qsched.service import stored_study as studies
from qsched.service.evaluator import Evaluator
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.worker import Worker
from qsched.study.study import Study, load_study
from tests.support import fakes

CALIBRATION, HELD_OUT = prompt_lists()


class Terms(fakes.FakeScorers):
    """The scorers of one study."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, list[float]]:
        return {name: super(Terms, self).score(images, prompts)[name] for name in self.names}


def finish(study: StoredStudy) -> StoredStudy:
    evaluator = Evaluator(
        fakes.FakeGenerator(),
        Terms(study.definition.scorers),
        study.definition.calibration,
    )
    assert Worker(study, evaluator).run()
    return study


@pytest.fixture
def study(tmp_path: Path) -> StoredStudy:
    """A study whose budget is spent."""
    return finish(studies.create(Storage(f"sqlite:///{tmp_path}/q.db"), fakes.study(tmp_path)))


def test_candidates_are_the_best_trials_but_never_the_identity(study: StoredStudy) -> None:
    slots = {slot.number: slot for slot in study.finished()}
    found = controls.candidates(study, 3)
    assert len(found) == 3
    assert all(not each.coefficients.is_identity for each in found)
    values = sorted((slot.value or 0 for slot in slots.values() if slot.number), reverse=True)
    assert [each.value for each in found] == values[:3]
    assert len(controls.candidates(study, 16)) == 5  # all but slot 0


def test_equal_coefficients_are_one_candidate(study: StoredStudy) -> None:
    from qsched.service.schema import SlotTable

    best = controls.candidates(study, 1)[0]

    def repeat(session: Any) -> None:
        vector = session.get_one(SlotTable, (study.incarnation.id, best.slot)).vector
        for slot in (1, 2, 3):
            session.get_one(SlotTable, (study.incarnation.id, slot)).vector = vector

    study.storage.database.transaction(repeat)
    found = controls.candidates(study, 16)
    assert len({each.coefficients for each in found}) == len(found) < 5


def test_what_each_control_is(tmp_path: Path) -> None:
    main = fakes.study(tmp_path, trials=9, stop_below=0.05, prior=0.5)
    assert list(controls.phrases(main)) == ["full-precision", "alignment", "quality", "grid"]
    full, quality, grid = (
        controls.definition(main, name, 20) for name in ("full-precision", "quality", "grid")
    )
    assert full.name == "fake.full-precision"
    assert full.tables.quantization.scheme == "none"
    assert full.objective == main.objective
    assert full.trials == quality.trials == 20
    assert quality.scorers == ("demo-quality",)
    assert quality.objective.terms[0].weight == 2.0
    assert quality.tables.quantization == main.tables.quantization
    assert grid.trials == 101
    assert (grid.tables.search.sampler, grid.tables.search.bounds) == ("grid", (0.8, 1.2))
    assert (grid.tables.search.stop_below, grid.tables.search.prior) == (0, 0)
    for each in (full, quality, grid):
        assert (each.calibration, each.held_out) == (main.calibration, main.held_out)
        assert Study.from_json(each.to_json()) == each


def test_more_than_two_terms_go_by_their_scorers(tmp_path: Path) -> None:
    main = fakes.study(tmp_path)
    terms = [{"scorer": name} for name in ("demo-alignment", "demo-quality", "pyiqa:piqe")]
    three = main.with_tables({"objective": {"preset": "plain", "terms": terms}})
    names = list(controls.phrases(three))
    assert names == ["full-precision", "demo-alignment", "demo-quality", "pyiqa-piqe", "grid"]
    assert controls.definition(three, "pyiqa-piqe", 5).scorers == ("pyiqa:piqe",)
    one = main.with_tables({"objective": {"preset": "plain", "terms": terms[:1]}})
    assert list(controls.phrases(one)) == ["full-precision", "grid"]


def test_a_network_that_others_quantized_has_its_own_full_precision(tmp_path: Path) -> None:
    main = fakes.study(tmp_path)
    model = main.tables.model.model_dump() | {"full_precision": "sdxl-base"}
    theirs = main.with_tables({"model": model, "quantization": {"scheme": "none"}})
    full = controls.definition(theirs, "full-precision", 5)
    assert full.tables.model.name == "sdxl-base"
    assert full.weights != theirs.weights


def test_names_are_checked_in_words(tmp_path: Path) -> None:
    main = fakes.study(tmp_path)
    assert controls.chosen(main, ["all"]) == list(controls.phrases(main))
    assert controls.chosen(main, ["grid", "full-precision"]) == ["full-precision", "grid"]
    with pytest.raises(StudyError, match=r"--controls: gird; expected some of full-precision, "):
        controls.chosen(main, ["grid", "gird"])
    full = main.with_tables({"quantization": {"scheme": "none"}})
    with pytest.raises(StudyError, match="on full precision itself"):
        controls.chosen(full, ["full-precision"])
    with pytest.raises(ConfigError, match="name"):
        controls.definition(main.changed(name="n" * 60), "full-precision", 5)


def test_controls_that_are_ready_are_found_and_those_of_another_study_left_out(
    study: StoredStudy, caplog: pytest.LogCaptureFixture
) -> None:
    companion = controls.companion(study, "quality")
    assert controls.ready(study) == []  # it has not been worked yet
    finish(companion)
    (found,) = controls.ready(study)
    best = companion.best()
    assert best is not None
    assert (found.name, found.network, found.candidate) == ("quality", "quantized", best)
    study.extend("+2")
    finish(study)
    assert [each.name for each in controls.ready(study)] == ["quality"]
    assert controls.companion(study, "quality").status().budget == 8
    other = replace(study.definition, calibration=study.definition.calibration[:4])
    assert not controls.ready(StoredStudy(study.storage, other, study.incarnation))
    assert "no control of 'fake' as this one is now" in caplog.text


LITTLE = f"""
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
sampler = "qmc"
trials = 4
[prompts]
calibration = {json.dumps(CALIBRATION[:3])}
held_out = {json.dumps(HELD_OUT[:4])}
[validation]
metrics = ["similarity", "pixels"]
candidates = 2
reference = "demo"
[execution]
batch_size = 4
"""


class Watcher(api.Observer):
    """Counts what is made."""

    def __init__(self) -> None:
        self.controls: list[str] = []
        self.images = (0, 0)
        self.trials = 0

    def control(self, study: str, what: str) -> None:
        self.controls.append(study)

    def batch(self, slot: int, scored: int, prompts: int) -> None:
        self.trials += scored == prompts

    def validating(self, images: int, of: int) -> None:
        self.images = (images, of)


@pytest.mark.slow
def test_a_validation_with_its_controls(tmp_path: Path) -> None:
    """Made once, resumed where they were left, in every later report; the same numbers again."""
    path = tmp_path / "little.toml"
    path.write_text(LITTLE)
    storage = Storage(f"sqlite:///{tmp_path}/q.db")
    main = studies.create(storage, load_study(path))
    assert api.work(main)
    begun = controls.companion(main, "full-precision")
    assert api.work(begun, max_trials=3)
    coarse = controls.definition(main.definition, "grid", 4).changed(trials=2 * 2 + 1)
    assert api.work(studies.create(storage, coarse))
    watcher = Watcher()
    out = tmp_path / "out"
    outcome = api.validate(main, controls=["full-precision"], out=out, observer=watcher)
    assert watcher.controls == ["little.full-precision"]
    assert watcher.trials == 1  # what full precision lacked
    assert watcher.images[0] <= watcher.images[1] == 7 * 8
    document = json.loads((out / "report.json").read_text())
    assert outcome.validation is not None
    assert document == outcome.validation.report()
    assert document["repair_against"] == "its own search"
    assert [row["chosen"] for row in document["candidates"]].count(True) == 1
    chosen = next(row for row in document["candidates"] if row["chosen"])
    held_out = document["held_out"]
    assert chosen["slot"] == document["best"]["slot"]
    assert chosen["verdict"] == document["verdict"]
    assert chosen["gain"]["mean"] == pytest.approx(held_out["jaq"]["difference"])
    assert [guard["name"] for guard in document["guards"]] == [
        *("brightness", "saturation", "contrast", "sharpness", "diversity")
    ]
    full, grid = document["controls"]
    assert (full["network"], grid["network"]) == ("full precision", "quantized")
    assert full["study"] == "little.full-precision"
    for row in (full, grid):
        assert set(row["held_out"]) == {
            *("jaq", "demo-alignment", "demo-quality", "similarity", "pixels")
        }
    for name, row in held_out.items():
        own = full["held_out"][name]
        assert row["repair"]["difference"] == pytest.approx(
            row["difference"] - own["difference"], abs=1e-9
        )
        assert own["mean"] - own["difference"] == pytest.approx(row["full_precision"], abs=1e-9)
    assert set(document["distributions"]) == {"frechet", "kid"}
    for name, distance in document["distributions"].items():
        assert distance["lower_is_better"] is True
        assert distance["independent"] is (name == "frechet")  # the same features count once
        assert distance["full_precision"] < distance["identity"]
        assert distance["difference"] == pytest.approx(
            distance["calibrated"] - distance["identity"]
        )
    again = Watcher()
    later = api.validate(studies.load(storage, "little"), out=tmp_path / "later", observer=again)
    assert again.trials == 0
    assert later.validation is not None
    assert json.loads((tmp_path / "later" / "report.json").read_text()) == document


@pytest.mark.slow
def test_without_candidates_nothing_is_claimed(tmp_path: Path) -> None:
    path = tmp_path / "little.toml"
    path.write_text(LITTLE.replace("trials = 4", "trials = 1").replace('reference = "demo"', ""))
    main = studies.create(Storage(f"sqlite:///{tmp_path}/q.db"), load_study(path))
    assert api.work(main)
    outcome = api.validate(main, out=tmp_path / "out")
    assert outcome.verdict == "not_shown"
    assert outcome.validation is not None
    assert outcome.validation.images == outcome.status.images + 2 * 8
    assert outcome.coefficients == Coefficients.identity(2)
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert document["candidates"] == document["guards"] == []
    assert document["held_out"]["jaq"]["difference"] == 0
    assert document["repair_against"] == "the same coefficients"
