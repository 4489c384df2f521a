"""A proof in the terminal: the held-out tables, the candidates, the guards and the verdict."""

from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from qsched.cli.terminal import facts
from qsched.evidence.guards import Guard
from qsched.proof.outcome import JAQ, Control, Judged, Proof
from qsched.report import rows


def proof(console: Console, found: Proof) -> None:
    """The verdict, the held-out tables and what they rest on."""
    colour = found.badge.colour
    console.print(
        Panel(
            Text(found.sentence),
            title=Text(found.badge.word, style=f"bold {colour}"),
            title_align="left",
            border_style=colour,
        )
    )
    table = rows.rows_of(found)
    console.print(rows.terminal(table, found.repair_against, console.width), soft_wrap=True)
    if found.controls:
        unseen = [name for name, metric in found.held_out.items() if metric.independent]
        console.print(controls(found.controls, unseen))
    said: list[tuple[str, str | Text]] = []
    if len(found.candidates) > 1:
        said.append(("candidates", candidates(found.candidates)))
    if found.guards:
        said += guards(found.guards)
    if said:
        console.print(facts(said, console.width), soft_wrap=True)


def controls(listed: Sequence[Control], unseen: Sequence[str]) -> Table:
    """What else was searched, on the same held-out prompts; the gain in JAQ and in `unseen`."""
    headings = ("on", "jaq gain, 95 % interval", *(f"{name}*" for name in unseen))
    table = rows.plain_table("control", *headings)
    for control in listed:
        table.add_row(
            control.name,
            "full" if control.full_precision else "quantized",
            rows.coloured(control.held_out[JAQ].gain),
            *(f"{control.held_out[name].gain.mean:+.3f}" for name in unseen),
        )
    return table


def candidates(judged: Sequence[Judged]) -> str:
    """Each candidate's trial, its held-out JAQ and its verdict."""
    parts = []
    for each in judged:
        mark = "*" if each.chosen else ""
        gain = each.gains[JAQ].mean
        parts.append(f"{each.candidate.slot}{mark} {gain:+.3f} {each.verdict.word}")
    return f"trial {', '.join(parts)}  (*: the one above)"


def guards(listed: Sequence[Guard]) -> list[tuple[str, Text]]:
    """Those that tripped, each by its name; or that all are well."""
    tripped = [guard for guard in listed if not guard.ok]
    if not tripped:
        shifts = ", ".join(f"{guard.name} {guard.shift:+.0%}" for guard in listed)
        return [("guards ok", Text(f"{shifts}, beside full precision", style="dim"))]
    return [
        (
            "guard",
            Text(
                f"{guard.name} {guard.shift:+.0%} off full precision, limit {guard.limit:.0%} "
                f"({guard.full_precision:.3f} -> {guard.calibrated:.3f}; "
                f"uncalibrated {guard.identity:.3f})",
                style="magenta",
            ),
        )
        for guard in tripped
    ]
