"""What optuna-dashboard shows of a study beside its numbers: contact sheets, a note, two plots."""

import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from qsched.errors import LeaseLost, MirrorLost, StudyGone, in_one_line
from qsched.pictures.pixels import eight_bit
from qsched.pictures.sheets import font
from qsched.proof import outcome
from qsched.report import rows
from qsched.report.artifacts import store_of
from qsched.report.figures import pairs, scale_of
from qsched.report.settings import in_a_line
from qsched.service.status import Candidate, Status
from qsched.service.stored_study import StoredStudy

if TYPE_CHECKING:
    from qsched.service.evaluator import Batch
    from qsched.service.schema import Slot

SHOWN = 16
"""Images of a contact sheet."""

NO_MORE = (StudyGone, LeaseLost, MirrorLost)
"""After these nothing is worth a try for this trial."""

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

    def __call__(self, slot: "Slot", batches: Sequence["Batch"], value: float) -> None:
        """Attaches the images of a trial's batches, if it is worth it. Raises StudyGone, LeaseLost,
        MirrorLost."""
        if not batches or not self._worth_it(slot.number, value):
            return
        images = np.concatenate([batch.images.numpy() for batch in batches])[:SHOWN]
        title = f"trial {slot.number}   JAQ {value:+.4f}"
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"trial-{slot.number:05}.png"
                contact_sheet(images, title).save(path, optimize=True)
                self._study.trials.attach(slot, path, self._store)
        except NO_MORE:
            raise
        except Exception as error:  # noqa: BLE001 - any store's own errors
            logger.warning("no contact sheet of trial %d: %s", slot.number, in_one_line(error))

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
    lines = -(-count // columns)
    sheet = Image.new(
        "RGB", (gap + columns * (size[0] + gap), top + lines * (size[1] + gap)), "white"
    )
    ImageDraw.Draw(sheet).text((gap, 8), title, fill="#222222", font=font(15))
    pixels = eight_bit(images).transpose(0, 2, 3, 1)
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
        text, graphs = note(study, status), {}
        if status.identity and status.best:
            graphs["coefficients"] = _profile(status.best)
        names, done = study.definition.parametrisation.names, study.finished()
        for one, other in pairs(names) if done else ():
            place = names.index(one), names.index(other)
            figure = _landscape(
                (one, other), place, study.definition.parametrisation.identity, done
            )
            graph = re.sub(r"\W+", "-", "landscape" + one.removeprefix("c_eps")).strip("-")
            graphs[graph] = figure
        mirror = study.trials.study

        def write() -> None:
            save_note(mirror, text)
            for name, figure in graphs.items():
                save_plotly_graph_object(mirror, figure, graph_object_id=name)

        study.trials.fenced(write)
    except StudyGone:  # then there is nothing to show
        pass
    except Exception as error:  # noqa: BLE001 - a note is no reason to end
        logger.warning("the study's note for the dashboard was not written: %s", in_one_line(error))


def note(study: StoredStudy, status: Status) -> str:
    """The study's state in Markdown."""
    proof = outcome.kept(study)
    lines = [
        in_a_line(study.definition),
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
    if proof is None:
        lines += ["", "Not validated yet: a value here is the search's own, and no proof."]
    else:
        table = rows.note(rows.rows_of(proof))
        lines += ["", f"**{proof.badge.word}**: {proof.sentence}", *([""] if table else []), *table]
    return "\n".join(lines)


def _profile(best: Candidate) -> Any:
    """c_eps and c_x of the best trial by step, beside the identity's ones."""
    import plotly.graph_objects as go

    figure = go.Figure()
    coefficients = best.coefficients
    steps = list(range(1, coefficients.steps + 1))
    if coefficients.average:
        figure.add_bar(x=steps, y=coefficients.average, name="average", opacity=0.4)
    for name, series in (("c_eps", coefficients.model), ("c_x", coefficients.sample)):
        figure.add_scatter(x=steps, y=series, name=name, mode="lines+markers")
    figure.add_hline(y=1, line_dash="dot", line_color="#888888")
    figure.update_layout(
        title=f"Coefficients of the best trial ({best.slot})",
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
