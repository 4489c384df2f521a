"""What optuna-dashboard shows of a study beside its numbers: contact sheets, a note, two plots."""

import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from qsched.pictures.sheets import font
from qsched.report.artifacts import store_of
from qsched.report.figures import pairs, scale_of
from qsched.report.numerals import Change
from qsched.service.status import Status
from qsched.service.stored_study import StoredStudy

if TYPE_CHECKING:
    from qsched.service.evaluator import Batch
    from qsched.service.schema import Slot

SHOWN = 16
"""Images of a contact sheet."""

logger = logging.getLogger(__name__)


class Gallery:
    """Attaches a contact sheet to the trials worth looking at, before they are finished: the
    identity, every new best, and the first `gallery.trials`.

    What goes wrong here is logged; a picture is no reason to lose a trial.
    """

    def __init__(self, study: StoredStudy) -> None:
        self._study = study
        self._first = study.definition.tables.gallery.trials
        self._store = store_of(study)

    def __call__(self, slot: "Slot", trial: int, batches: Sequence["Batch"], value: float) -> None:
        """Attaches the images of a trial's batches, if it is worth it."""
        if not batches or not self._worth_it(slot.number, value):
            return
        images = np.concatenate([batch.images.numpy() for batch in batches])[:SHOWN]
        title = f"trial {slot.number}   JAQ {value:+.4f}"
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"trial-{slot.number:05}.png"
                contact_sheet(images, title).save(path, optimize=True)
                self._study.trials.attach(trial, path, self._store)
        except Exception:
            logger.warning("no contact sheet of trial %d", slot.number, exc_info=True)

    def _worth_it(self, number: int, value: float) -> bool:
        if number <= self._first:
            return True
        best = self._study.queue.best()
        return best is None or best.value is None or value > best.value


def contact_sheet(images: np.ndarray, title: str) -> Image.Image:
    """Images (N, 3, H, W) in [0, 1] as one picture, four in a row, pixels enlarged without blur."""
    count, _, height, width = images.shape
    factor = max(1, 160 // width)
    size = (width * factor, height * factor) if width <= 320 else (320, 320 * height // width)
    columns, gap, top = min(4, count), 6, 34
    rows = -(-count // columns)
    sheet = Image.new(
        "RGB", (gap + columns * (size[0] + gap), top + rows * (size[1] + gap)), "white"
    )
    ImageDraw.Draw(sheet).text((gap, 8), title, fill="#222222", font=font(15))
    pixels = (images.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
    resample = Image.Resampling.NEAREST if width <= 320 else Image.Resampling.LANCZOS
    for index, image in enumerate(pixels):
        place = (gap + index % columns * (size[0] + gap), top + index // columns * (size[1] + gap))
        sheet.paste(Image.fromarray(np.ascontiguousarray(image)).resize(size, resample), place)
    return sheet


def publish(study: StoredStudy) -> None:
    """Puts the study's note and its plots into optuna-dashboard. What goes wrong is logged."""
    try:
        from optuna_dashboard import save_note, save_plotly_graph_object
    except ImportError:  # without the extra there is no dashboard to look at either
        return
    try:
        status = study.status()
        twin = study.trials.study
        save_note(twin, note(study, status))
        if status.identity and status.best:
            save_plotly_graph_object(twin, _profile(status), graph_object_id="coefficients")
        names, done = study.definition.parametrisation.names, study.finished()
        for one, other in pairs(names) if done else ():
            place = names.index(one), names.index(other)
            figure = _landscape(
                (one, other), place, study.definition.parametrisation.identity, done
            )
            graph = re.sub(r"\W+", "-", "landscape" + one.removeprefix("c_eps")).strip("-")
            save_plotly_graph_object(twin, figure, graph_object_id=graph)
    except Exception:
        logger.warning("the study's note for the dashboard was not written", exc_info=True)


def note(study: StoredStudy, status: Status) -> str:
    """The study's state in Markdown."""
    tables = study.definition.tables
    outcome = study.storage.outcome(study.name)
    lines = [
        f"**{tables.model.name}** at {tables.quantization.scheme}, {tables.sampling.steps} steps, "
        f"`{tables.search.parametrisation}` over {list(tables.search.bounds)}",
        "",
        f"{status.done} of {status.budget} trials, {status.images:,} images scored"
        + (f", {status.parked} parked" if status.parked else ""),
    ]
    if status.identity and status.best:
        best = status.best
        lines += [
            "",
            "| | trial | JAQ | c_eps | c_x |",
            "|---|---|---|---|---|",
            *(
                f"| {label} | {found.slot} | {found.value:.4f} | "
                f"{', '.join(f'{x:.3f}' for x in found.coefficients.model)} | "
                f"{', '.join(f'{x:.3f}' for x in found.coefficients.sample)} |"
                for label, found in (("identity", status.identity), ("best", best))
            ),
        ]
    if outcome:
        lines += ["", f"**{outcome['verdict'].replace('_', ' ')}**: {outcome['sentence']}"]
        lines += _held_out_table(outcome.get("held_out", {}))
    else:
        lines += ["", "Not validated yet: a value here is the search's own, and no proof."]
    return "\n".join(lines)


def _held_out_table(metrics: Mapping[str, Any]) -> list[str]:
    """The held-out means, gains and repairs in Markdown."""
    if not metrics:
        return []
    rows = []
    for name, found in metrics.items():
        means = (found["full_precision"], found["identity"], found["calibrated"])
        changes = [Change.of(found[key]) for key in ("control", "repair") if key in found]
        cells = [f"{mean:.3f}" for mean in means]
        cells += [f"{each.number} {each.interval}" for each in (Change.of(found), *changes)]
        label = f"{name} (unseen)" if found.get("independent") else name
        rows.append(f"| {' | '.join([label, *cells])} |")
    heading = ["held out", "full precision", "quantized", "calibrated", "gain"]
    heading += [
        word
        for key, word in (("control", "gain on full precision"), ("repair", "repair"))
        if all(key in found for found in metrics.values())
    ]
    return ["", f"| {' | '.join(heading)} |", "|---" * len(heading) + "|", *rows]


def _profile(status: Status) -> Any:
    """c_eps and c_x of the best trial by step, beside the identity's ones."""
    import plotly.graph_objects as go

    figure = go.Figure()
    assert status.best is not None
    coefficients = status.best.to_dict()["coefficients"]
    steps = list(range(1, len(coefficients["model"]) + 1))
    if coefficients.get("average"):
        figure.add_bar(x=steps, y=coefficients["average"], name="average", opacity=0.4)
    for name, key in (("c_eps", "model"), ("c_x", "sample")):
        figure.add_scatter(x=steps, y=coefficients[key], name=name, mode="lines+markers")
    figure.add_hline(y=1, line_dash="dot", line_color="#888888")
    figure.update_layout(
        title=f"Coefficients of the best trial ({status.best.slot})",
        xaxis={"title": "step", "tickvals": steps},
        yaxis_title="factor",
        template=None,
    )
    return figure


def _landscape(
    names: tuple[str, str],
    place: tuple[int, int],
    neutral: Sequence[float],
    done: Sequence["Slot"],
) -> Any:
    """Two numbers of the search space, a point a trial, coloured by its value.

    `place`: where they stand in the vectors; `neutral`: the identity's vector.
    """
    import plotly.graph_objects as go

    x, y = ([(slot.vector or neutral)[axis] for slot in done] for axis in place)
    low, high = scale_of([slot.value or 0.0 for slot in done], done[0].value)
    figure = go.Figure(
        go.Scatter(
            x=[round(value, 4) for value in x],
            y=[round(value, 4) for value in y],
            text=[f"trial {slot.number}" for slot in done],
            mode="markers",
            marker={
                "color": [round(slot.value or 0.0, 4) for slot in done],
                "colorscale": "Viridis",
                "cmin": low,
                "cmax": high,
                "showscale": True,
                "size": 9,
                "colorbar": {"title": "JAQ"},
            },
        )
    )
    figure.add_scatter(
        x=[neutral[place[0]]],
        y=[neutral[place[1]]],
        mode="markers",
        name="identity",
        marker={"symbol": "x", "size": 11},
    )
    figure.update_layout(
        title="Landscape",
        xaxis_title=names[0],
        yaxis_title=names[1],
        showlegend=False,
        template=None,
    )
    return figure
