"""The typed outcome: it comes back from JSON as it was, also from older versions, and says what
leaves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qsched.errors import StudyError
from qsched.proof.outcome import JAQ, Proof, Verdict
from qsched.schedule.coefficients import Coefficients
from qsched.service.status import Status
from tests.support import fakes_light
from tests.support.outcomes import IDENTITY, RAMP, proof, whole

FIRST = Path(__file__).parent / "outcomes" / "0.1.json"
"""What qsched 0.1 stored of a run of the demo."""


def first() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(FIRST.read_text())
    return stored


def test_what_version_0_1_stored_is_read_key_for_key() -> None:
    stored = first()
    found = Proof.from_dict(stored)
    assert found.report() | {"scheduler": found.scheduler} == {"run": found.run, **stored}
    assert list(found.report())[1:] == [key for key in stored if key != "scheduler"]
    assert found.verdict is Verdict.IMPROVED
    assert found.held_out[JAQ].gain.mean == stored["held_out"]["jaq"]["difference"]


@pytest.mark.parametrize("made", [proof(), whole(), whole("suspicious"), proof("worse")])
def test_an_outcome_comes_back_from_json(made: Proof) -> None:
    back = Proof.from_dict(json.loads(json.dumps(made.to_dict())))
    assert back == made


@pytest.mark.parametrize(
    "later",
    [
        ("candidates", "controls", "guards", "distributions", "repair_against"),
        ("held_out", "network", "versions", "stopped_early"),
    ],
)
def test_what_an_older_outcome_lacks_is_empty(later: tuple[str, ...]) -> None:
    stored = {key: value for key, value in whole().to_dict().items() if key not in later}
    for metric in stored.get("held_out", {}).values():
        for key in ("control", "repair", "full_precision_calibrated", "independent"):
            del metric[key]
    found = Proof.from_dict(stored)
    assert found.verdict is Verdict.IMPROVED
    for name, metric in found.held_out.items():
        assert (metric.taste, metric.repair, metric.independent) == (None, None, False), name
        assert metric.to_dict().keys().isdisjoint({"control", "repair"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "its outcome has version 2; expected at most 1; upgrade qsched"),
        ({"verdict": "splendid"}, "its outcome can't be read: .*'splendid' is not a valid Verdict"),
        ({"best": None}, "its outcome can't be read"),
        ({"coefficients": {"model": [1.0], "sample": [-1.0]}}, "its outcome can't be read"),
    ],
)
def test_what_is_no_outcome_is_refused_in_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=f"study 'fake': {words}.*qsched validate fake") as error:
        Proof.from_dict(proof().to_dict() | change)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("verdict", "force", "leaves", "forced"),
    [
        ("improved", False, RAMP, False),
        ("improved", True, RAMP, False),
        ("not_shown", False, IDENTITY, False),
        ("worse", False, IDENTITY, False),
        ("suspicious", False, IDENTITY, False),
        ("suspicious", True, RAMP, True),
    ],
)
def test_only_what_is_proven_or_forced_leaves(
    verdict: str, force: bool, leaves: Coefficients, forced: bool
) -> None:
    assert proof(verdict).taken(force=force) == (leaves, forced)


def test_the_identity_cannot_be_forced() -> None:
    assert proof("not_shown", best=IDENTITY).taken(force=True) == (IDENTITY, False)


def test_each_verdict_looks_its_own_way() -> None:
    for look in zip(*(verdict.badge for verdict in Verdict), strict=True):
        assert len(set(look)) == len(Verdict)
    assert [verdict for verdict in Verdict if verdict.publishes] == [Verdict.IMPROVED]


@pytest.mark.parametrize(
    ("done", "words"), [(4, "2 trials are to be done"), (6, "qsched validate fake proves it")]
)
def test_before_a_verdict_it_says_what_is_to_be_done(tmp_path: Path, done: int, words: str) -> None:
    found = Proof.pending(fakes_light.study(tmp_path), status(done))
    assert words in found.sentence
    assert found.grid_images == 2500 * 6
    assert not found.proven
    assert found.report()["verdict"] is None
    assert found.report().keys().isdisjoint({"held_out", "coefficients", "versions"})
    with pytest.raises(StudyError, match="'fake' has no verdict yet; run qsched validate fake"):
        found.taken()


def status(done: int) -> Status:
    return Status(
        study="fake",
        budget=6,
        done=done,
        stopped=0,
        running=0,
        waiting=6 - done,
        parked=0,
        paused=False,
        images=6 * done,
        seconds=1.0,
        identity=None,
        best=None,
        expected=None,
        reasons=(),
        workers=(),
        fingerprint={},
        accepted={},
    )


def test_a_proven_result_need_not_be_the_best_of_the_search() -> None:
    averaged = RAMP.averaged((0.25,) * 4)
    found = replace(proof(), coefficients=averaged)
    assert found.taken() == found.taken(force=True) == (averaged, False)
