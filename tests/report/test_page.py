"""The report's page: whole, escaped, in need of nothing else, and true to its numbers."""

import base64
import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qsched.evidence.guards import Guard
from qsched.pictures.sheets import Pictures
from qsched.proof.outcome import JAQ, Proof, Verdict
from qsched.report import page
from qsched.report.numerals import Change, duration
from qsched.service.schema import Slot, WorkerRecord
from qsched.service.status import Candidate, Status
from qsched.statistics import Interval
from qsched.study.study import Study, load_study
from tests.support import fakes_light
from tests.support.html import Reader
from tests.support.outcomes import IDENTITY, METRIC, RAMP, UNSEEN, whole

ATTACK = "<script>alert(1)</script>"
CAPTIONS = ("an owl", ATTACK, '" onerror="alert(1)" alt="', "{{ 7 * 7 }}")
ROWS = ("full_precision", "identity", "calibrated")
SECTIONS = {
    *("verdict", "pictures", "held-out", "candidates", "controls", "guards", "distances"),
    *("course", "coefficients", "landscape", "cost", "take-away", "settings", "fingerprint"),
    "versions",
}


def slot(number: int, value: float, vector: tuple[float, ...], state: str = "finished") -> Slot:
    return Slot(number, state, 1, 0, None, vector, number, value, None)


SLOTS = [
    slot(0, 1.0, (1.0, 1.0)),
    slot(1, 0.6, (0.8, 1.2)),
    slot(2, 0.7, (1.2, 1.2), "stopped"),
    slot(3, 1.5, (1.1, 0.9)),
    slot(4, 1.2, (1.15, 0.9)),
]
WORKER = WorkerRecord("a-1", "gpu-box", 1, {"device": "RTX A6000"}, "done", 1.0, 30, 60.0)


def status(**changes: Any) -> Status:
    plain = Status(
        study="owls",
        budget=5,
        done=5,
        stopped=1,
        running=0,
        waiting=0,
        parked=0,
        paused=False,
        images=30,
        seconds=60.0,
        identity=Candidate(0, 1.0, IDENTITY),
        best=Candidate(3, 1.5, RAMP),
        expected=None,
        reasons=(),
        workers=(WORKER,),
        fingerprint={"sampling.steps": 4, "model.lora": None},
        accepted={},
    )
    return replace(plain, **changes)


def outcome(verdict: Verdict | str = "improved", **changes: Any) -> Proof:
    """An outcome of today, with every part, of the study and trials here."""
    searched = replace(METRIC, gain=Interval(-0.5, -0.6, -0.4))
    held_out = {JAQ: METRIC, "demo-quality": searched, "pixels": UNSEEN}
    here = {"study": "owls", "budget": 5, "trials": 5, "images": 42, "held_out": held_out}
    return whole(verdict, **(here | changes))


def pictures(side: int = 8) -> Pictures:
    rng = np.random.default_rng(0)
    shape = (len(CAPTIONS), side, side, 3)
    rows = {row: rng.integers(0, 256, shape).astype(np.uint8) for row in ROWS}
    return Pictures(CAPTIONS, rows, RAMP.to_dict())


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return fakes_light.study(tmp_path)


def render(
    study: Study,
    proof: Proof | None = None,
    *,
    slots: list[Slot] = SLOTS,
    shown: Pictures | str = "no pictures here",
    **changes: Any,
) -> Reader:
    return Reader(page.render(proof or outcome(), study, status(**changes), slots, shown))


def test_all_sections_are_there_with_their_figures(study: Study) -> None:
    read = render(study, shown=pictures())
    assert read.words.keys() >= SECTIONS
    linked = {link["href"].removeprefix("#") for link in read.all("a")}
    assert linked == SECTIONS - {"verdict", "fingerprint"}
    assert read.drawn["pictures img"] == 3 * len(CAPTIONS)
    for place in ("course", "coefficients", "landscape", "held-out", "candidates", "controls"):
        assert read.drawn[f"{place} svg"], place
    assert [row["lang"] for row in read.all("html")] == ["en"]
    assert all(image["alt"] for image in read.all("img"))
    assert all("aria-label" in svg or svg.get("aria-hidden") for svg in read.all("svg"))


def test_the_page_needs_nothing_else(study: Study) -> None:
    text = page.render(outcome(), study, status(), SLOTS, pictures())
    read = Reader(text)
    for tag, attributes in read.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
    assert "@import" not in text
    assert "url(" not in text
    assert "//" not in re.sub(r"base64,[^\"]*", "", text)
    policy = next(
        m["content"] for m in read.all("meta") if "content" in m and "src" in m["content"]
    )
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_what_users_write_stays_text(study: Study) -> None:
    plain = outcome()
    one = replace(plain.controls[0], name=ATTACK, what=ATTACK)
    attacked = replace(
        plain,
        sentence=ATTACK,
        network=ATTACK,
        fingerprint={ATTACK: ATTACK},
        controls=(one, *plain.controls[1:]),
        held_out={**plain.held_out, ATTACK: UNSEEN},
    )
    read = render(study, attacked, shown=pictures())
    assert len(read.all("script")) == 1
    assert ATTACK in read.text("verdict")
    for caption in CAPTIONS:
        assert caption in read.text("pictures")
        assert f"full precision: {caption}" in {image["alt"] for image in read.all("img")}
    for place in ("held-out", "controls", "settings", "fingerprint"):
        assert ATTACK in read.text(place), place


@pytest.mark.parametrize("side", [8, 100, 320, 900])
def test_small_pictures_are_true_to_the_pixel_and_large_ones_small(study: Study, side: int) -> None:
    made = pictures(side)
    embedded = [image["src"] for image in render(study, shown=made).all("img")]
    sources = [made.rows[row][k] for k in range(len(CAPTIONS)) for row in ROWS]
    for uri, source in zip(embedded, sources, strict=True):
        data = base64.b64decode(uri.removeprefix("data:image/webp;base64,"))
        image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert 160 < image.shape[1] <= 320
        if side <= 320:
            factor = image.shape[1] // side
            assert np.array_equal(image, source.repeat(factor, axis=0).repeat(factor, axis=1))


@pytest.mark.parametrize("verdict", Verdict)
def test_the_verdict_is_on_top_in_a_badge_and_a_sentence(study: Study, verdict: Verdict) -> None:
    badge = verdict.badge
    read = render(study, outcome(verdict))
    assert f"{badge.sign}{badge.word} It is so." in read.text("verdict")
    assert next(a["class"] for _, a in read.tags if a.get("id") == "verdict") == (
        f"verdict {badge.tone}"
    )


def test_every_tone_has_its_colour(study: Study) -> None:
    text = page.render(outcome(), study, status(), SLOTS, "")
    for tone in {verdict.badge.tone for verdict in Verdict}:
        assert f".{tone} {{ --tone: var(--{tone}); }}" in text
        assert text.count(f"--{tone}: #") == 3, "by day, by night and on paper"


def test_an_older_outcome_is_a_shorter_page(study: Study) -> None:
    held_out = {n: replace(m, taste=None, repair=None) for n, m in outcome().held_out.items()}
    older = outcome(held_out=held_out, distances={}, candidates=(), controls=(), guards=())
    read = render(study, older)
    left_out = {"candidates", "controls", "guards", "distances"}
    assert SECTIONS & read.words.keys() == SECTIONS - left_out
    assert left_out.isdisjoint(link["href"].removeprefix("#") for link in read.all("a"))
    assert "no pictures here" in read.text("pictures")
    assert "repair" not in read.text("held-out")


def test_a_study_that_has_not_begun_has_a_page(study: Study) -> None:
    nothing = {"identity": None, "best": None, "workers": (), "images": 0, "seconds": 0.0}
    waiting = status(done=0, **nothing)
    read = Reader(page.render(Proof.pending(study, waiting), study, waiting, [], "none"))
    assert "not validated" in read.text("verdict")
    absent = {
        "held-out",
        "average",
        "course",
        "coefficients",
        "landscape",
        "take-away",
        "versions",
    }
    assert absent.isdisjoint(read.words)


def test_the_held_out_table_says_what_counts(study: Study) -> None:
    words = render(study).text("held-out")
    assert "JAQ 3.000 1.000 1.500 +0.500 [+0.250, +0.750]" in words
    assert "demo-quality searched" in words
    assert "pixels unseen" in words
    assert "gains by its own search" in words
    assert "−0.500 [−0.600, −0.400]" in words


def test_guards_are_shares_of_full_precision(study: Study) -> None:
    tripped = Guard("saturation", 0.5, 0.4, 0.7, limit=0.1)
    fits = Guard("contrast", 1.0, 1.0, 0.95, limit=0.1)
    words = render(study, outcome(guards=(tripped, fits))).text("guards")
    assert "0.500 0.400 0.700 +40 % ±10 % ✕ tripped" in words
    assert "−5 % ±10 % ✓ ok" in words


def test_more_trials_after_the_verdict_are_named(study: Study) -> None:
    assert "first 5 trials; 3 more" in render(study, done=8).text("verdict")
    assert "more are done" not in render(study).text("verdict")


@pytest.mark.parametrize(
    ("low", "high", "better", "kind"),
    [
        (0.1, 0.3, 1, "better"),
        (-0.3, -0.1, 1, "worse"),
        (-0.1, 0.3, 1, "open"),
        (0.1, 0.3, -1, "worse"),
        (-0.3, -0.1, -1, "better"),
        (0.1, 0.3, 0, "open"),
    ],
)
def test_an_interval_is_drawn_where_it_lies(
    low: float, high: float, better: int, kind: str
) -> None:
    read = Reader(Change((low + high) / 2, low, high, 0.3, better).bar)
    (bar,) = read.all("rect")
    assert bar["class"] == kind
    left, width = float(bar["x"]), float(bar["width"])
    assert left == pytest.approx(60 + 56 * low / 0.3, abs=0.06)
    assert left + width == pytest.approx(60 + 56 * high / 0.3, abs=0.12)


@pytest.mark.parametrize(
    ("mean", "half", "words"),
    [
        (0.009457, 0.0995, "+0.009 [−0.090, +0.109]"),
        (0.0065782, 0.0068, "+0.007 [−0.000, +0.013]"),
        (-0.0085255, 0.00086, "−0.0085 [−0.0094, −0.0077]"),
        (-0.5786, 0.35, "−0.579 [−0.929, −0.229]"),
        (0.0001234, 0.00021, "+0.00012 [−0.00009, +0.00033]"),
        (12.5, 4.0, "+12.50 [+8.50, +16.50]"),
        (0.0, 0.0, "+0.000 [+0.000, +0.000]"),
    ],
)
def test_a_difference_has_the_digits_that_its_interval_leaves(
    mean: float, half: float, words: str
) -> None:
    found = Change(mean, mean - half, mean + half)
    assert f"{found.number} {found.interval}" == words


def test_an_average_of_predictions_is_shown_where_there_is_one(tmp_path: Path) -> None:
    path = fakes_light.study_file(tmp_path)
    searched = '[search]\nparametrisation = "ramp+x0-average"'
    path.write_text(path.read_text().replace("[search]", searched))
    study = load_study(path)
    found = study.parametrisation.coefficients((1.1, 0.9, 0.1, 0.2, -0.1))
    rng = np.random.default_rng(0)
    slots = [slot(0, 0.0, study.parametrisation.identity)]
    slots += [slot(i, float(i), (*rng.normal(1, 0.1, 2), *rng.normal(0, 0.1, 3))) for i in (1, 2)]
    read = render(study, outcome(best=found), slots=slots)
    assert read.drawn["average title"] == 4
    assert read.drawn["landscape figure"] == 1 + 3
    assert f"average={found.average}" in read.text("python")


@pytest.mark.parametrize("verdict", ["improved", "not_shown"])
def test_the_code_to_take_away_has_the_very_numbers(study: Study, verdict: str) -> None:
    read = render(study, outcome(verdict))
    code = read.words["python"].strip().replace("pipeline.scheduler = ", "# ")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["found"] == RAMP
    assert ("Not proven" in read.text("take-away")) == (verdict != "improved")
    assert ("--force" in read.text("command")) == (verdict != "improved")


def test_what_is_the_unmodified_schedule_is_not_taken_away(study: Study) -> None:
    read = render(study, outcome("not_shown", best=IDENTITY))
    assert "keep the scheduler you have" in read.text("take-away")
    assert "python" not in read.words


def test_the_cost_is_set_beside_the_grids(study: Study) -> None:
    words = render(study).text("cost")
    assert "trials 5 of 5" in words
    assert "of them on some of the prompts 1 trial images" in words
    assert "images of the search 30" in words
    assert "images of the proof 12 more" in words
    assert "1 on 1 machine; RTX A6000" in words
    assert "15,000 images, 500 times as many: 8.3 h at this speed" in words  # 2 s an image


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(5.4, "5 s"), (119, "119 s"), (150, "2.5 min"), (7200, "2.0 h"), (200_000, "2.3 days")],
)
def test_times_are_written_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words
