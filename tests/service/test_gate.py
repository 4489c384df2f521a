"""One gate for the fingerprint: run, create, work and validate refuse and record the same.

What no score depends on goes through it, for workers that start from then on.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qsched import api
from qsched.digests import sha256
from qsched.errors import StudyError
from qsched.hub import note
from qsched.scoring.catalog import ScorerEntry
from qsched.scoring.loading import load_scorer
from qsched.service import stored_study as studies
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.study.study import Study
from tests.support import fakes_light as fakes

OTHER = {
    "versions.diffusers": "0.38.0",
    "versions.numpy": "1.26.4",
    "model.weights": "0" * 32,
}

Verb = Callable[[StoredStudy, Study, list[str]], object]

GATED: dict[str, Verb] = {
    "create": lambda stored, study, accept: studies.create(stored.storage, study, accept=accept),
    "run": lambda stored, study, accept: api.run(study, storage=stored.storage, accept=accept),
    "work": lambda stored, study, accept: api.work(stored, accept=accept),
    "validate": lambda stored, study, accept: api.validate(stored, accept=accept),
}


class Passed(Exception):  # noqa: N818 - it is none
    """The gate is behind us."""


@pytest.fixture
def elsewhere(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredStudy:
    """A study that was begun with other libraries and weights; what comes after the gate is not
    run here."""

    def passed(*_: Any) -> None:
        raise Passed

    study = studies.create(Storage(url), fakes.study(tmp_path))
    fingerprint = study.status().fingerprint | OTHER
    study.storage.redefine(study.incarnation, study.definition.to_json(), fingerprint, {})
    monkeypatch.setattr(StoredStudy, "status", passed)
    monkeypatch.setattr("qsched.service.queue.Queue.counts", passed)
    return studies.load(study.storage, "fake")


@pytest.mark.parametrize("verb", GATED)
def test_other_versions_and_weights_are_refused_key_by_key(
    elsewhere: StoredStudy, tmp_path: Path, verb: str
) -> None:
    study = fakes.study(tmp_path)
    now = study.fingerprint()
    with pytest.raises(StudyError, match="--accept KEY") as raised:
        GATED[verb](elsewhere, study, ["versions.numpy"])
    for key in ("versions.diffusers", "model.weights"):
        words = f"{key}: the study has {OTHER[key]!r}, now it is {now[key]!r}"
        assert words in str(raised.value)
    assert "versions.numpy" not in str(raised.value)
    assert "versions.torch" not in str(raised.value)
    assert elsewhere.storage.record(elsewhere.incarnation).accepted == {}


@pytest.mark.parametrize("verb", GATED)
def test_what_is_accepted_is_recorded_and_asked_no_more(
    elsewhere: StoredStudy, tmp_path: Path, verb: str
) -> None:
    study = fakes.study(tmp_path)
    now = study.fingerprint()
    with pytest.raises(Passed):
        GATED[verb](elsewhere, study, list(OTHER))
    if verb in ("work", "validate"):
        record = elsewhere.storage.record(elsewhere.incarnation)
        assert record.accepted == {key: [OTHER[key], now[key]] for key in OTHER}
        assert record.fingerprint == now
        for again in GATED.values():
            with pytest.raises(Passed):
                again(studies.load(elsewhere.storage, "fake"), study, [])


def test_an_accepted_key_of_the_file_reaches_the_workers(url: str, tmp_path: Path) -> None:
    storage = Storage(url)
    studies.create(storage, fakes.study(tmp_path, seed=0))
    studies.create(storage, fakes.study(tmp_path, seed=5), accept=["search.seed"])
    later = studies.load(storage, "fake")
    later.require_agreement()
    assert later.definition.tables.search.seed == 5
    assert later.status().accepted == {"search.seed": [0, 5]}


def test_scorers_are_loaded_from_the_files_of_whoever_came_first(url: str, tmp_path: Path) -> None:
    """Nobody knows them before: what `create` enters has none, and is created again as before."""
    storage = Storage(url)
    study = studies.create(storage, fakes.study(tmp_path))
    study.require_weights({})
    study.require_weights({"clipscore": {"a.safetensors": "1"}})
    study.require_weights({"clipscore": {"a.safetensors": "1"}, "pyiqa:musiq": {"m.pth": "2"}})
    known = study.status().fingerprint
    assert known["loaded.pyiqa:musiq"] == {"m.pth": "2"}
    other = {"clipscore": {"a.safetensors": "1"}, "pyiqa:musiq": {"m.pth": "3"}}
    with pytest.raises(StudyError, match=r"loaded.pyiqa:musiq: the study has .*'2'.* it is .*'3'"):
        study.require_weights(other)
    with pytest.raises(
        StudyError, match=r"loaded\.clipscore: the study has .*a\.safe.* it is .*b\.bin"
    ):
        study.require_weights({"clipscore": {"b.bin": "1"}}, ["loaded.pyiqa:musiq"])
    assert study.status().fingerprint == known
    study.require_weights(other, ["loaded.pyiqa:musiq"])
    again = studies.create(storage, fakes.study(tmp_path))
    again.require_agreement()
    again.require_weights(other)
    assert again.status().fingerprint == known | {"loaded.pyiqa:musiq": {"m.pth": "3"}}
    assert again.status().accepted == {"loaded.pyiqa:musiq": [{"m.pth": "2"}, {"m.pth": "3"}]}


@pytest.mark.parametrize("verb", ["work", "validate"])
def test_whoever_loads_other_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Before an image is made; each time it is the demo's scorer that was loaded from elsewhere."""
    monkeypatch.setattr("qsched.scoring.scorers.load_scorer", loaded_from(tmp_path / "weights.pt"))
    storage = Storage(f"sqlite:///{tmp_path}/q.db")
    study = studies.create(storage, fakes.study(tmp_path / "files", trials=1))
    (tmp_path / "weights.pt").write_bytes(b"one")
    if verb == "validate":
        assert api.work(study)
    else:
        study.require_weights({"demo-quality": {"weights.pt": sha256(tmp_path / "weights.pt")}})
    (tmp_path / "weights.pt").write_bytes(b"another")
    with pytest.raises(StudyError, match=r"loaded.demo-quality: .* --accept KEY$"):
        GATED[verb](study, study.definition, [])
    assert study.status().images == (6 if verb == "validate" else 0)


def loaded_from(file: Path) -> Callable[..., Any]:
    """`load_scorer`, by which one scorer loads a file too."""

    def load(entry: ScorerEntry, *, twin: bool = False) -> Any:
        if entry.name == "demo-quality":
            note(file)
        return load_scorer(entry, twin=twin)

    return load


def test_settings_outside_the_fingerprint_are_taken_and_named(url: str, tmp_path: Path) -> None:
    storage, told = Storage(url), dict[str, Any]()
    first = studies.create(storage, fakes.study(tmp_path, trials=4), on_change=told.update)
    assert told == {}
    file = fakes.study_file(tmp_path, trials=6)
    text = file.read_text() + "allow_mixed_hardware = true\n[gallery]\ntrials = 3\n"
    file.write_text(text.replace("batch_size = 2", "batch_size = 4"))
    studies.create(storage, api.load_study(file), on_change=told.update)
    assert told == {
        "execution.batch_size": (2, 4),
        "execution.allow_mixed_hardware": (False, True),
        "gallery.trials": (first.definition.tables.gallery.trials, 3),
    }
    later = studies.load(storage, "fake")
    assert later.definition.tables.execution.allow_mixed_hardware
    assert later.definition.trials == 4  # what the sampler was begun with
    assert later.status().budget == 6
    told.clear()
    studies.create(storage, api.load_study(file), on_change=told.update)
    assert told == {}
    json.dumps(later.status().to_dict())


def test_a_study_of_0_1_is_worked_on_as_before(url: str, tmp_path: Path) -> None:
    """Its fingerprint lists packages that are not used, and lacks some that are."""
    study = studies.create(Storage(url), fakes.study(tmp_path))
    old = {key: value for key, value in study.status().fingerprint.items() if key != "format"}
    old |= {"versions.pyiqa": "0.1.15"}
    study.storage.redefine(study.incarnation, study.definition.to_json(), old, {})
    study.require_agreement()
    assert study.status().fingerprint == old
    studies.create(study.storage, study.definition)
    assert study.status().fingerprint == study.definition.fingerprint()
