"""The Python API as a notebook has it: dicts, strings, short reprs, tables, data frames."""

import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

import qsched
from qsched.api import Outcome
from qsched.errors import ConfigError
from qsched.proof.outcome import keep
from qsched.service.stored_study import StoredStudy
from qsched.study.study import Study, load_study
from tests.support import fakes
from tests.support.html import Reader
from tests.support.outcomes import RAMP, proof

ODD = "<b>&"


def test_a_study_is_loaded_from_a_dict_as_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = fakes.study_file(tmp_path)
    tables = tomllib.loads(file.read_text())
    found = load_study(tables)
    assert found == load_study(file)
    assert (found.file, found.fingerprint()) == (None, load_study(file).fingerprint())
    (tmp_path / "captions.txt").write_text("a cat\na dog\n")
    tables["prompts"]["calibration"] = Path("captions.txt")
    tables["gallery"] = {"store": str(tmp_path / "pictures")}
    found = load_study(tables)
    assert [prompt.text for prompt in found.calibration] == ["a cat", "a dog"]
    assert found.store == str(tmp_path / "pictures")
    assert Study.from_json(found.to_json()).store is None  # what only a database names
    tables["sampling"]["stepz"] = 4
    with pytest.raises(ConfigError, match=r"^study: sampling.stepz is not a known key"):
        load_study(tables)


@pytest.fixture
def stored(tmp_path: Path) -> StoredStudy:
    study = fakes.stored(f"sqlite:///{tmp_path}/q.db", tmp_path, trials=4)
    worker = fakes.worker(study)
    assert worker.run_one()
    assert worker.run_one()
    return study


def test_paths_may_be_strings_everywhere(
    tmp_path: Path, stored: StoredStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keep(stored, proof())
    qsched.take_away(stored, "export")
    qsched.write_report(stored, "report")
    assert (tmp_path / "export" / "README.md").is_file()
    assert (tmp_path / "report" / "report.html").is_file()


def test_reprs_are_short_and_their_html_is_escaped(stored: StoredStudy) -> None:
    definition = stored.definition
    made = replace(proof(), study=ODD, sentence=f"It is {ODD} so.")
    outcome = Outcome(stored.status(), True, 0, None, made)
    assert repr(RAMP).startswith("<Coefficients c_eps 1.1, 1.067, 1.033, 1; c_x 0.9, ")
    assert repr(definition) == "<Study 'fake': demo at w4a8, 4 steps, 4 trials, 6 prompts>"
    assert repr(stored) == f"<StoredStudy 'fake' in {stored.storage}>"
    assert repr(outcome) == f"<Outcome of 'fake': improved: It is {ODD} so.>"
    unfinished = Outcome(stored.status(), False, 0)
    assert repr(unfinished) == "<Outcome of 'fake': stopped after 2 of 4 trials>"
    for shown in (RAMP, definition, stored, made, outcome, unfinished):
        text = shown._repr_html_()
        Reader(text)  # every tag is closed
        assert "<b>" not in text
        assert text.count("<tr>") >= 2
    assert "<td>1.067</td>" in RAMP._repr_html_()
    assert "+0.500 [+0.250, +0.750]" in outcome._repr_html_()
    assert "2 of 4" in unfinished._repr_html_()


def test_trials_are_a_data_frame(stored: StoredStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = stored.trials_dataframe()
    assert list(frame.index) == [0, 1, 2, 3]
    assert list(frame["state"]) == ["finished", "finished", "waiting", "waiting"]
    first, second = stored.slots()[:2]
    assert frame.loc[1, "value"] == second.value
    assert first.value is not None
    assert second.value is not None
    assert frame.loc[1, "gain"] == second.value - first.value
    names = stored.definition.parametrisation.names
    assert tuple(frame.loc[1, list(names)]) == second.vector
    means = stored.attributes(stored.queue.scores(1))
    assert frame.loc[1, "demo-quality"] == means["demo-quality"]
    assert frame.loc[[2, 3]].isna()["value"].all()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="needs pandas: pip install pandas"):
        stored.trials_dataframe()
