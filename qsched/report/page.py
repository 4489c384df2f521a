"""A study's report as one HTML page that needs nothing else: no network, no other file.

Everything comes in as values: the outcome, the study's definition and status, its trials and the
held-out pictures. The page shows what is there, so that the report of an older qsched, or of a
study without a verdict, is a shorter page. jinja2 escapes what users wrote, and the page's content
security policy lets nothing be fetched and no script run but its own.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from qsched.pictures.sheets import ROWS, Pictures
from qsched.proof.outcome import JAQ, Control, Judged, Proof
from qsched.report import figures, files, rows
from qsched.report.drawing import LIGHT
from qsched.report.numerals import Change, compact, count, duration, figure, percent
from qsched.report.settings import settings
from qsched.service.schema import Slot
from qsched.service.status import Status
from qsched.study.study import Study

TEMPLATES = Path(__file__).parent

SCRIPT = """
for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.onclick = async () => {
    const code = document.getElementById(button.dataset.of);
    getSelection().selectAllChildren(code);
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "copied";
  };
}
"""
"""Copies a code block; all else works without it."""


def environment() -> Environment:
    """For the pages: what users wrote is escaped, and a name that is missing is an error."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    made.filters |= {"figure": figure, "percent": percent, "compact": compact, "flat": flat}
    made.filters["zip"] = zip
    return made


def render(
    proof: Proof,
    definition: Study,
    status: Status,
    slots: Sequence[Slot],
    pictures: Pictures | str,
) -> str:
    """The page.

    `slots`: the finished and the stopped ones, by number. `pictures`: or why there are none, in a
    sentence.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    listed = rows.rows_of(proof, definition.scorers)
    drawn = _figures(proof, definition, slots)
    return (
        environment()
        .get_template("page.html")
        .render(
            proof=proof,
            light=LIGHT,
            script=Markup(SCRIPT),
            digest=digest,
            status=status,
            since=status.done - proof.trials,
            pictures=_cards(pictures),
            held_out=rows.page(listed),
            candidates=_candidates(proof.candidates),
            controls=_controls(proof.controls),
            distances=rows.page(listed, "distances"),
            figures=drawn,
            odd=_odd(drawn),
            cost=cost(proof, status),
            settings=[each for each in settings(definition, network=proof.network) if each.page],
            take_away=_take_away(proof),
            numbers=files.NUMBERS,
        )
    )


def _cards(pictures: Pictures | str) -> Any:
    """A card a prompt: its caption, and its images with their labels."""
    if isinstance(pictures, str):
        return pictures
    embedded = [pictures.embedded(row) for row in ROWS]
    return [
        {"caption": caption, "images": list(zip(ROWS.values(), images, strict=True))}
        for caption, *images in zip(pictures.captions, *embedded, strict=True)
    ]


def _candidates(judged: Sequence[Judged]) -> list[tuple[Judged, Change]]:
    """Each with its gain in JAQ, all on one axis."""
    gains = [each.gains[JAQ] for each in judged]
    reach = max((abs(end) for gain in gains for end in (gain.low, gain.high)), default=0)
    return [(each, Change.of(gain, reach)) for each, gain in zip(judged, gains, strict=True)]


def _controls(controls: Sequence[Control]) -> dict[str, Any]:
    """The metrics that the controls were measured by, and of each control a mean and a change by
    metric, on one axis each."""
    names = list(dict.fromkeys(name for each in controls for name in each.held_out))
    reach = {
        name: max(
            abs(end)
            for each in controls
            if name in each.held_out
            for end in (each.held_out[name].gain.low, each.held_out[name].gain.high)
        )
        for name in names
    }
    changes = [
        [
            (found.mean, Change.of(found.gain, reach[name]))
            if (found := each.held_out.get(name))
            else None
            for name in names
        ]
        for each in controls
    ]
    return {
        "metrics": [rows.title(name) for name in names],
        "rows": list(zip(controls, changes, strict=True)),
    }


def _figures(proof: Proof, definition: Study, slots: Sequence[Slot]) -> dict[str, Any]:
    """The course, the profile and the landscape, as far as there are trials."""
    values = [slot.value for slot in slots if slot.value is not None]
    if not values or slots[0].number or proof.best is None:
        return {}
    coefficients, space = proof.best.coefficients, definition.parametrisation
    average = coefficients.average
    low, high = figures.scale_of(values, slots[0].value)
    drawn = figures.landscapes(slots, space.names, space.identity)
    return {
        "course": figures.course(slots).svg(),
        "stopped": any(slot.state == "stopped" for slot in slots),
        "below": min(values) < low,
        "profile": figures.profile(coefficients).svg(),
        "weights": figures.weights(average).svg() if average else None,
        "landscapes": [each.svg() for each in drawn],
        "coloured": bool(figures.pairs(space.names)),
        "low": figure(low),
        "high": figure(high),
        "colours": figures.ramp(),
    }


def _odd(drawn: Mapping[str, Any]) -> bool:
    """Whether the last of the narrow sections has a row of its own: course, coefficients, cost and
    what to take away, perhaps a landscape of one panel and an average."""
    return bool(drawn) and (len(drawn["landscapes"]) == 1) != bool(drawn["weights"])


def cost(proof: Proof, status: Status) -> list[tuple[str, str]]:
    """What the study took, and what the official grid would have taken, in words."""
    grid = proof.grid_images
    speed = status.images / status.seconds if status.seconds else 0.0
    lines = [
        ("trials", f"{status.done:,} of {status.budget:,}"),
        ("images of the search", f"{status.images:,}"),
        ("time of the search", f"{duration(status.seconds)} of generating and scoring"),
        ("speed", f"{speed:.3g} images a second and worker"),
    ]
    if status.stopped:
        lines.insert(1, ("of them on some of the prompts", count(status.stopped, "trial")))
    if proof.verdict and proof.best and proof.identity and JAQ in proof.held_out:
        searched = proof.best.value - proof.identity.value
        said = [f"{searched:+.3f} as searched"]
        if proof.expected is not None:
            said.append(f"{proof.expected - proof.identity.value:+.3f} by the search's model")
        said.append(f"{proof.held_out[JAQ].gain.mean:+.3f} held out")
        lines.append(("what the best gains in JAQ", ", ".join(said)))
    more = proof.images - status.images
    if proof.verdict and more > 0:
        lines.append(("images of the proof", f"{more:,} more"))
    machines = {worker.host for worker in status.workers}
    devices = {str(worker.hardware["device"]) for worker in status.workers if worker.hardware}
    if status.workers:
        where = f"{len(status.workers)} on {count(len(machines), 'machine')}"
        lines.append(("workers", "; ".join([where, *sorted(devices)])))
    share = grid / status.images if status.images else 0.0
    words = f"{grid:,} images"
    if share > 1:
        words += f", {share:.0f} times as many: {duration(grid / speed)} at this speed"
    return [*lines, ("the official 50 x 50 grid", words)]


def _take_away(proof: Proof) -> dict[str, Any] | None:
    """The code that puts the coefficients into a pipeline; of the best trial where none is
    proven."""
    if proof.best is None:
        return None
    chosen = proof.taken().coefficients if proof.proven else proof.best.coefficients
    series = chosen.to_dict().items()
    numbers = "".join(f"    {name}={tuple(values)!r},\n" for name, values in series)
    return {
        "same": chosen.is_identity,
        "python": "import qsched\n\n"
        f"found = qsched.Coefficients(\n{numbers})\n"
        "pipeline.scheduler = qsched.precondition(pipeline.scheduler, found)",
        "command": f"qsched export {proof.study} --out calibrated/"
        + ("" if proof.proven else " --force"),
    }


def flat(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """The keys that have a value, in their order."""
    return ((key, value) for key, value in values.items() if value not in (None, [], {}))
