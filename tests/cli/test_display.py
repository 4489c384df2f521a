"""What a person sees: progress in a log and in a terminal, the end of a run, the studies."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qsched.api import Outcome
from qsched.cli import display
from qsched.cli import proof as tables
from qsched.cli.terminal import facts
from qsched.evidence.guards import Guard
from qsched.proof.outcome import Control, Distance, Gained, Judged, Verdict
from qsched.proof.standing import Standing
from qsched.report.rows import rows_of, terminal
from qsched.schedule.coefficients import Coefficients
from qsched.service.schema import WorkerRecord
from qsched.service.status import Candidate, Status
from qsched.statistics import Interval
from tests.support.outcomes import proof

IDENTITY = Candidate(0, 1.0, Coefficients.identity(4))
BEST = Candidate(3, 1.5, Coefficients.ramp(4, 1.1, 0.9))


def status(
    done: int,
    *,
    budget: int = 20,
    best: Candidate | None = BEST,
    paused: bool = False,
    workers: tuple[WorkerRecord, ...] = (),
) -> Status:
    return Status(
        study="demo",
        budget=budget,
        done=done,
        stopped=0,
        running=0,
        waiting=budget - done,
        parked=0,
        paused=paused,
        images=32 * done,
        seconds=2.0 * done,
        identity=IDENTITY,
        best=best,
        expected=None,
        reasons=(),
        workers=workers,
        fingerprint={},
        accepted={},
    )


def console(*, terminal: bool = False, width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, highlight=False)


def text(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def test_a_log_gets_a_line_at_every_tenth() -> None:
    shown = console()
    with display.LiveProgress(shown).live() as observer:
        for done in range(101):
            observer.working(status(done, budget=100))
            observer.batch(done, 16, 32)
        for images in range(0, 257, 16):
            observer.validating(images, 256)
    lines = text(shown).splitlines()
    assert len(lines) == 22
    assert lines[0].startswith("trials    0/100")
    assert "best +0.500 over identity, 16 img/s" in lines[5]
    assert lines[10].startswith("trials    100/100")
    assert lines[-1].startswith("held-out  256/256")


def test_a_terminal_gets_bars() -> None:
    shown = console(terminal=True)
    with display.LiveProgress(shown).live() as observer:
        observer.working(status(4))
        observer.batch(4, 16, 32)
    assert "resuming  4 of 20 trials are done" in text(shown)
    assert "4/20" in text(shown)
    assert "━" in text(shown)


@pytest.mark.parametrize("verdict", Verdict)
def test_the_end_fits_a_terminal_and_says_where_things_are(verdict: Verdict) -> None:
    shown = console()
    outcome = Outcome(status(20), True, 80_000, Path("/r/demo"), proof(verdict, images=652))
    display.outcome(shown, outcome, "/s/qsched.db")
    out = text(shown)
    assert verdict.word in out
    assert "It is so." in out
    assert "+0.500 [+0.250, +0.750]" in out
    assert "640 images in 40 s" in out
    assert "80,000 images" in out
    assert "12 more images" in out
    for path in ("report.html", "images.png", "report.json", "coefficients.json", "scheduler"):
        assert f"/r/demo/{path}" in out
    assert "/s/qsched.db" in out
    assert ("candidate      c_eps" in out) == (not verdict.publishes)
    assert max(len(line) for line in out.splitlines()) <= 80


def test_an_interrupted_run_says_that_nothing_is_lost() -> None:
    shown = console()
    display.outcome(shown, Outcome(status(7), False, 80_000), "/s/qsched.db")
    assert "stopped after 7 of 20 trials; nothing is lost" in text(shown)


def standing(seen: Status, verdict: Verdict | None = None, left: int = 0) -> Standing:
    return Standing(seen, proof(verdict) if verdict else None, left)


def test_studies_are_listed_with_what_they_found() -> None:
    shown = console()
    rows = [standing(status(7), left=640), standing(status(0, best=None), left=1280)]
    rows.append(standing(replace(status(20), study="x" * 20), Verdict.NOT_SHOWN))
    shown.print(display.studies(rows))
    lines = text(shown).splitlines()
    assert lines[0].split() == ["study", "verdict", "trials", "running", "parked", "gain", "left"]
    assert lines[1].split() == ["demo", "-", "7/20", "0", "0", "+0.5000", "about", "40", "s"]
    assert lines[2].split() == ["demo", "-", "0/20", "0", "0", "-", "-"]
    assert lines[3].split() == ["x" * 20, "not", "shown", "20/20", "0", "0", "+0.5000", "-"]
    assert max(map(len, lines)) <= 80


def test_one_study_is_shown_with_its_verdict_and_its_time() -> None:
    seen = display.study(standing(status(7), left=64_000), "/s/qsched.db", 80).plain
    assert "verdict        -\n" in seen
    assert "best           1.5000 (trial 3), +0.5000 over the identity" in seen
    assert "best so far    c_eps" in seen
    assert "time left      about 66.7 min, for 64,000 images at the most" in seen
    seen = display.study(standing(status(0), left=9), "/s/qsched.db", 80).plain
    assert "time left      not known yet, for 9 images at the most" in seen
    seen = display.study(standing(status(20), Verdict.IMPROVED), "/s/qsched.db", 80).plain
    assert "verdict        improved\n               It is so." in seen
    assert "coefficients   c_eps" in seen
    assert "time left" not in seen
    assert "database       /s/qsched.db" in seen


def test_what_is_long_goes_on_below_and_no_word_is_split() -> None:
    path = Path("/a folder/" + "x" * 90)
    said = facts([("label", "word " * 30), ("path", path), ("", "y" * 70)], 80).plain.split("\n")
    assert said[0] == "label          " + " ".join(["word"] * 13)
    assert said[1].startswith("               word")
    assert said[-2:] == [f"path           {path}", "               " + "y" * 70]


@pytest.mark.parametrize("width", [64, 80, 100])
@pytest.mark.parametrize("metric", ["pixels", "open_clip:ViT-B-32/laion2b_s34b_b79k"])
def test_the_held_out_table_fits_and_keeps_its_numbers_whole(metric: str, width: int) -> None:
    jaq, unseen = proof().held_out.values()
    table = rows_of(proof(held_out={"jaq": jaq, metric: unseen}, distances={}))
    lines = terminal(table, "the same coefficients", width).plain.split("\n")
    assert max(map(len, lines)) <= width
    assert sum("[+0.250, +0.750]" in line for line in lines) == len(table)
    together = any(metric in line and "[" in line for line in lines)
    assert together == (width == 100 or (width == 80 and metric == "pixels"))


def test_several_workers_are_shown_with_their_speed() -> None:
    alive = [
        WorkerRecord(f"w{i}", "node", 40 + i, {"device": "cuda A6000"}, "working", 3.0, 100, 10.0)
        for i in range(2)
    ]
    gone = WorkerRecord("w9", "node", 49, {}, "lost", 900.0, 10, 1.0)
    seen = status(7, workers=(*alive, gone))
    shown = console(width=100)
    shown.print(display.workers(seen))
    assert "node:40" in text(shown)
    assert "10.0" in text(shown)
    assert "node:49" not in text(shown)
    logged = console()
    with display.LiveProgress(logged).live() as observer:
        observer.working(seen)
    assert "2 workers, 20 img/s" in text(logged)


def test_a_worker_that_waits_says_why() -> None:
    shown = console()
    with display.LiveProgress(shown).live() as observer:
        observer.waiting(status(7, paused=True))
    assert "the study is paused" in text(shown)


def test_a_control_gets_a_line_and_a_count_of_its_own() -> None:
    shown = console()
    with display.LiveProgress(shown).live() as observer:
        observer.working(status(20))
        observer.control("demo.grid", "the official grid")
        observer.working(status(0))
        observer.working(status(7))
    out = text(shown)
    assert "control   demo.grid: the official grid" in out
    assert out.index("trials    20/20") < out.index("demo.grid") < out.index("trials    0/20")
    assert "resuming" not in out


def proven(**changes: Any) -> str:
    """What is printed of a proof, in a terminal of 100 columns."""
    shown = console(width=100)
    tables.proof(shown, proof(**{"distances": {}, **changes}))
    assert max(len(line) for line in text(shown).splitlines()) <= 100
    return text(shown)


def test_candidates_and_guards_are_shown_in_a_line() -> None:
    gain = {"jaq": Interval(0.5, 0.25, 0.75)}
    well = Guard("contrast", 1.0, 1.1, 1.05, limit=0.15)
    tripped = Guard("saturation", 1.0, 1.1, 1.4, limit=0.15)
    judged = (
        Judged(BEST, gain, (well,), Verdict.IMPROVED, chosen=True),
        Judged(replace(BEST, slot=7), gain, (tripped,), Verdict.SUSPICIOUS),
    )
    out = proven(candidates=judged, guards=(well,))
    assert "trial 3* +0.500 improved, 7 +0.500 suspicious" in out
    assert "guards ok      contrast +5%" in out
    out = proven(verdict=Verdict.SUSPICIOUS, guards=(well, tripped))
    assert "saturation +40% off full precision, limit 15% (1.000 -> 1.400; uncalibrated 1.1" in out
    assert "guards ok" not in out
    assert "contrast" not in out
    assert "suspicious" in out
    assert "guard" not in proven()


def test_controls_and_distances_have_their_place() -> None:
    gain = Interval(0.5, 0.25, 0.75)
    measured = {"jaq": Gained(2.0, gain), "pixels": Gained(-3.0, gain)}
    control = Control("full-precision", "a search", "demo.full-precision", BEST, True, measured)
    out = proven(
        controls=(control,),
        distances={
            "frechet": Distance(
                30.0, 50.0, 45.0, Interval(-5.0, -7.0, -3.0), Interval(-4.0, -6.5, -1.5), True
            ),
            "kid": Distance(
                0.01, 0.03, 0.0289, Interval(-0.0011, -0.002, 0.0), Interval(0, 0, 0), False
            ),
        },
        repair_against="its own search",
    )
    assert "full-precision full +0.500 [+0.250, +0.750] +0.500" in words(out)
    assert "-5.0 [-7.0, -3.0]" in out
    assert "frechet*" in out
    assert "kid " in out
    assert "-0.0011 [-0.0020, +0.0000]" in out
    assert "frechet, kid: distances to real images, less is better" in words(out)
    assert "gains by its own search" in words(out)
    assert "gains by the same coefficients" in words(proven())


def words(out: str) -> str:
    """Without line breaks."""
    return " ".join(out.split())
