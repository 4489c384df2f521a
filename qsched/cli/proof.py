"""A proof in the terminal: the held-out tables, the candidates, the guards and the verdict."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from qsched.evidence.guards import Guard
from qsched.proof.verdict import JAQ, OWN_SEARCH, HeldOut, Judged
from qsched.statistics import Interval

if TYPE_CHECKING:
    from qsched.proof.validation import Companion, Distance, Validation

VERDICTS = {
    "improved": ("green", "improved"),
    "not_shown": ("yellow", "not shown"),
    "worse": ("red", "worse"),
    "suspicious": ("magenta", "suspicious"),
}


def proof(console: Console, validation: "Validation") -> None:
    """The held-out tables and the verdict."""
    own = validation.repair_against == OWN_SEARCH
    console.print(held_out(validation.metrics, validation.distributions, own_search=own))
    if validation.controls:
        unseen = [name for name, metric in validation.metrics.items() if metric.independent]
        console.print(controls(validation.controls, unseen))
    if len(validation.candidates) > 1:
        console.print(candidates(validation.candidates), soft_wrap=True)
    if validation.guards:
        console.print(guards(validation.guards), soft_wrap=True)
    colour, word = VERDICTS[validation.verdict]
    console.print(
        Panel(
            Text(validation.sentence),
            title=f"[bold {colour}]{word}[/]",
            title_align="left",
            border_style=colour,
        )
    )


def held_out(
    metrics: Mapping[str, HeldOut],
    distributions: "Mapping[str, Distance]",
    *,
    own_search: bool = False,
) -> Table:
    """The held-out means and differences, a row a metric."""
    table = _table("held-out", "full", "quantized", "calibrated", "gain, 95 % interval", "repair")
    for name, metric in metrics.items():
        table.add_row(
            f"{name}*" if metric.independent else name,
            f"{metric.full_precision:.3f}",
            f"{metric.identity:.3f}",
            f"{metric.calibrated:.3f}",
            _interval(metric.gain),
            f"{metric.repair.mean:+.3f}",
        )
    for name, distance in distributions.items():
        decimals = 1 if distance.identity >= 10 else 4
        table.add_row(
            f"{name}*" if distance.independent else name,
            f"{distance.full_precision:.{decimals}f}",
            f"{distance.identity:.{decimals}f}",
            f"{distance.calibrated:.{decimals}f}",
            _interval(distance.gain, decimals, lower_is_better=True),
            f"{distance.repair.mean:+.{decimals}f}",
        )
    taste = "its own search" if own_search else "the same coefficients"
    notes = ["*: unseen by the search"]
    if distributions:
        notes += [f"{', '.join(distributions)}: distances to real images, less is better"]
    notes += [f"repair: the gain less what full precision gains by {taste}"]
    table.caption = "; ".join(notes)
    table.caption_justify = "left"
    return table


def controls(rows: "Sequence[Companion]", unseen: Sequence[str]) -> Table:
    """What else was searched, on the same held-out prompts; the gain in JAQ and in `unseen`."""
    table = _table("control", "on", "jaq gain, 95 % interval", *(f"{name}*" for name in unseen))
    for row in rows:
        table.add_row(
            row.control.name,
            "full" if row.control.full_precision else "quantized",
            _interval(row.rows[JAQ][1]),
            *(f"{row.rows[name][1].mean:+.3f}" for name in unseen),
        )
    return table


def candidates(rows: Sequence[Judged]) -> Text:
    """Each candidate's trial, its held-out JAQ and its verdict, in one line."""
    parts = []
    for row in rows:
        mark = "*" if row.chosen else ""
        gain = row.gains[JAQ].mean
        parts.append(f"{row.candidate.slot}{mark} {gain:+.3f} {VERDICTS[row.verdict][1]}")
    return Text(f"candidates     trial {', '.join(parts)}  (*: the one above)")


def guards(rows: Sequence[Guard]) -> Text:
    """Those that tripped, a line each; or that all are well."""
    tripped = [guard for guard in rows if not guard.ok]
    if not tripped:
        shifts = ", ".join(f"{guard.name} {guard.shift:+.0%}" for guard in rows)
        return Text(f"guards ok      {shifts}, beside full precision", style="dim")
    return Text(
        "\n".join(
            f"guard          {guard.name} {guard.shift:+.0%} off full precision, limit "
            f"{guard.limit:.0%} ({guard.full_precision:.3f} -> {guard.calibrated:.3f}; "
            f"uncalibrated {guard.identity:.3f})"
            for guard in tripped
        ),
        style="magenta",
    )


def _table(first: str, *headings: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _interval(gain: Interval, decimals: int = 3, *, lower_is_better: bool = False) -> Text:
    """A difference with its interval; green for the better, red for the worse."""
    up, down = ("red", "green") if lower_is_better else ("green", "red")
    colour = up if gain.above_zero else down if gain.below_zero else ""
    mean, low, high = (f"{value:+.{decimals}f}" for value in (gain.mean, gain.low, gain.high))
    return Text(f"{mean} [{low}, {high}]", style=colour)
