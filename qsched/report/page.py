"""A study's report as one HTML page that needs nothing else: no network, no other file.

Everything comes in as values: the report's JSON, the study's definition and status, its trials and
the held-out pictures. The page shows what is there, so that the report of an older qsched, or of a
study without a verdict, is a shorter page. jinja2 escapes what users wrote, and the page's content
security policy lets nothing be fetched and no script run but its own.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from qsched.pictures.sheets import ROWS, Pictures
from qsched.report import figures
from qsched.report.drawing import LIGHT
from qsched.report.numerals import Change, compact, count, duration, figure, percent
from qsched.schedule.coefficients import Coefficients
from qsched.service.schema import Slot
from qsched.service.status import Status
from qsched.study.study import Study

TEMPLATE = Path(__file__).with_name("page.html")

VERDICTS = {
    "improved": ("✓", "improved"),
    "not_shown": ("–", "not shown"),
    "worse": ("✕", "worse"),
    "suspicious": ("!", "suspicious"),
    None: ("…", "not validated"),
}
"""The badge of each verdict, and of a study without one."""

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


def render(
    content: Mapping[str, Any],
    definition: Study,
    status: Status,
    slots: Sequence[Slot],
    pictures: Pictures | str,
) -> str:
    """The page.

    `content`: as report.json has it; what is missing is left out. `slots`: the finished and the
    stopped ones, by number. `pictures`: or why there are none, in a sentence.
    """
    sign, word = VERDICTS.get(content.get("verdict"), VERDICTS[None])
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["figure"] = figure
    environment.filters["percent"] = percent
    environment.filters["compact"] = compact
    environment.filters["flat"] = flat
    drawn = _figures(content, definition, slots)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=content,
        sign=sign,
        word=word,
        script=Markup(SCRIPT),
        digest=digest,
        status=status,
        searched=definition.scorers,
        since=status.done - content["trials"],
        pictures=_cards(pictures),
        held_out=_held_out(content, definition),
        candidates=_candidates(content),
        controls=_controls(content),
        distributions=_distributions(content),
        figures=drawn,
        light=LIGHT,
        odd=_odd(drawn),
        cost=cost(content, status),
        settings=_settings(content, definition),
        take_away=_take_away(content),
    )


def _cards(pictures: Pictures | str) -> Any:
    """A card a prompt: its caption, and its images with their labels."""
    if isinstance(pictures, str):
        return pictures
    rows = [pictures.embedded(row) for row in ROWS]
    return [
        {"caption": caption, "images": list(zip(ROWS.values(), images, strict=True))}
        for caption, *images in zip(pictures.captions, *rows, strict=True)
    ]


def _held_out(content: Mapping[str, Any], definition: Study) -> list[dict[str, Any]]:
    rows = []
    for name, found in content.get("held_out", {}).items():
        parts = [found, *(found[key] for key in ("control", "repair") if key in found)]
        reach = max(abs(end) for part in parts for end in part["interval"])
        seen = "searched" if name in definition.scorers else ""
        changes = {
            key: Change.of(found[key], reach) for key in ("control", "repair") if key in found
        }
        rows.append(
            {
                "name": "JAQ" if name == "jaq" else name,
                "tag": "unseen" if found.get("independent") else seen,
                "gain": Change.of(found, reach),
                **{key: found.get(key) for key in ROWS},
                "control": changes.get("control"),
                "repair": changes.get("repair"),
            }
        )
    return rows


def _candidates(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = content.get("candidates", [])
    reach = max((abs(each["gain"][end]) for each in found for end in ("low", "high")), default=0)
    return [
        {**each, "gain": Change.of(each["gain"], reach), "badge": VERDICTS[each["verdict"]]}
        for each in found
    ]


def _controls(content: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that the controls were measured by, and a row a control."""
    found = content.get("controls", [])
    names = list(dict.fromkeys(name for each in found for name in each["held_out"]))
    reach = {
        name: max(
            abs(end)
            for each in found
            if name in each["held_out"]
            for end in each["held_out"][name]["interval"]
        )
        for name in names
    }
    rows = []
    for each in found:
        changes = {
            name: (measured["mean"], Change.of(measured, reach[name]))
            for name, measured in each["held_out"].items()
        }
        rows.append({**each, "changes": [changes.get(name) for name in names]})
    return {"metrics": ["JAQ" if name == "jaq" else name for name in names], "rows": rows}


def _distributions(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            **found,
            "name": name,
            "gain": Change.of(found, better=_better(found)),
            "repair": Change.of(found["repair"], better=_better(found))
            if "repair" in found
            else None,
        }
        for name, found in content.get("distributions", {}).items()
    ]


def _better(found: Mapping[str, Any]) -> int:
    return -1 if found.get("lower_is_better") else 1


def _figures(
    content: Mapping[str, Any], definition: Study, slots: Sequence[Slot]
) -> dict[str, Any]:
    """The course, the profile and the landscape, as far as there are trials."""
    values = [slot.value for slot in slots if slot.value is not None]
    if not values or slots[0].number or content["best"] is None:
        return {}
    coefficients = Coefficients.from_dict(content["best"]["coefficients"])
    space = definition.parametrisation
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


def cost(content: Mapping[str, Any], status: Status) -> list[tuple[str, str]]:
    """What the study took, and what the official grid would have taken, in words."""
    grid = content["images_of_the_official_grid"]
    speed = status.images / status.seconds if status.seconds else 0.0
    rows = [
        ("trials", f"{status.done:,} of {status.budget:,}"),
        ("images of the search", f"{status.images:,}"),
        ("time of the search", f"{duration(status.seconds)} of generating and scoring"),
        ("speed", f"{speed:.3g} images a second and worker"),
    ]
    if status.stopped:
        rows.insert(1, ("stopped early", count(status.stopped, "trial")))
    proof = content["images_generated"] - status.images
    if content.get("verdict") and proof > 0:
        rows.append(("images of the proof", f"{proof:,} more"))
    machines = {worker.host for worker in status.workers}
    devices = {str(worker.hardware["device"]) for worker in status.workers if worker.hardware}
    if status.workers:
        where = f"{len(status.workers)} on {count(len(machines), 'machine')}"
        rows.append(("workers", "; ".join([where, *sorted(devices)])))
    share = grid / status.images if status.images else 0.0
    words = f"{grid:,} images"
    if share > 1:
        words += f", {share:.0f} times as many: {duration(grid / speed)} at this speed"
    return [*rows, ("the official 50 x 50 grid", words)]


def _settings(content: Mapping[str, Any], definition: Study) -> list[tuple[str, str]]:
    tables = definition.tables
    model, sampling, quantization = tables.model, tables.sampling, tables.quantization
    search, held_out = tables.search, definition.held_out
    captions = len({prompt.text for prompt in held_out})
    terms = " + ".join(
        f"{term.weight:g} x {f'log({term.scorer})' if term.log else term.scorer}"
        for term in tables.objective.terms
    )
    places = (model.source, model.revision, model.variant, model.dtype, "twin" * model.twin)
    size = f"{sampling.width} x {sampling.height} pixels" if sampling.width else None
    guidance = sampling.guidance_scale
    rows = {
        "model": ", ".join(filter(None, (model.name, *places))),
        "sampling": ", ".join(
            filter(
                None,
                (
                    count(sampling.steps, "step"),
                    None if guidance is None else f"guidance {guidance:g}",
                    size,
                ),
            )
        ),
        "quantization": " by ".join(filter(None, (quantization.scheme, quantization.backend))),
        "network": content.get("network"),
        "objective": f"JAQ = {terms} ({tables.objective.preset})",
        "search": f"{search.parametrisation} over [{search.bounds[0]:g}, {search.bounds[1]:g}], "
        f"sampler {search.sampler}, seed {search.seed}"
        + (f", stops below {search.stop_below:g}" if search.stop_below else "")
        + (f", prior {search.prior:g}" if search.prior else ""),
        "calibration prompts": f"{len(definition.calibration)}",
        "held-out prompts": f"{captions}, {len(held_out)} images each set",
        "held-out metrics": ", ".join(tables.validation.metrics),
    }
    return [(name, words) for name, words in rows.items() if words]


def _take_away(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The code that puts the coefficients into a pipeline; of the best trial where none is
    proven."""
    if content["best"] is None:
        return None
    proven = content.get("verdict") == "improved"
    chosen = content["coefficients"] if proven else content["best"]["coefficients"]
    numbers = "".join(
        f"    {name}={tuple(chosen[name])!r},\n"
        for name in ("model", "sample", "average")
        if chosen.get(name)
    )
    return {
        "proven": proven,
        "same": set(chosen["model"]) | set(chosen["sample"]) == {1.0} and not chosen.get("average"),
        "python": "import qsched\n\n"
        f"found = qsched.Coefficients(\n{numbers})\n"
        "pipeline.scheduler = qsched.precondition(pipeline.scheduler, found)",
        "command": f"qsched export {content['study']} --out calibrated/"
        + ("" if proven else " --force"),
    }


def flat(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """The keys that have a value, in their order."""
    return ((key, value) for key, value in values.items() if value not in (None, [], {}))
