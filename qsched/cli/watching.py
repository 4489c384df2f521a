"""`qsched status`: looking at studies, once or again and again."""

import json
import time
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from qsched.cli import display
from qsched.cli.options import console
from qsched.errors import StudyError, Unreadable
from qsched.proof.standing import Standing, standing_of
from qsched.service.stored_study import load

if TYPE_CHECKING:
    from qsched.service.storage import Storage

EVERY = 2.0
"""Seconds between two looks."""


class Seen(NamedTuple):
    """What a look shows: studies, and by their names why others can't be read."""

    rows: list[Standing]
    unreadable: dict[str, str]


def look(storage: "Storage", name: str | None) -> Seen:
    """At one study, or at all; what dead workers held returns to the queue. Raises StudyError for
    the one that was asked for; among all of them it is said of it."""
    rows, unreadable = [], {}
    for each in [name] if name else storage.study_names():
        try:
            study = load(storage, each)
            study.tidy()
            rows.append(standing_of(study))
        except (StudyError, Unreadable) as error:
            if name:
                raise
            unreadable[each] = str(error)
    return Seen(rows, unreadable)


def as_json(seen: Seen, name: str | None) -> str:
    """One document for one study, else a list."""
    documents = [row.to_dict() for row in seen.rows]
    documents += [{"study": each, "unreadable": why} for each, why in seen.unreadable.items()]
    return json.dumps(documents[0] if name else documents)


def shown(seen: Seen, name: str | None, storage: "Storage") -> Group:
    """For a person: one study with all that is known of it, or a line a study."""
    parts: list[RenderableType] = []
    if name:
        parts += [display.study(row, str(storage), console.width) for row in seen.rows]
    elif seen.rows:
        parts.append(display.studies(seen.rows))
    parts += [Text(f"{each}: {why}", style="yellow") for each, why in seen.unreadable.items()]
    for row in seen.rows:
        if row.status.alive:
            parts.append(display.workers(row.status))
        parts += [
            Text(f"{row.status.study}: trial {slot} failed: {reason}")
            for slot, reason in row.status.reasons
        ]
    return Group(*parts)


def watch(storage: "Storage", name: str | None) -> None:
    """Looks again and again until nothing is left to do, or Ctrl-C. Where nobody sees the lines
    change in place, all are printed anew when something has changed."""
    printed = ""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            seen = look(storage, name)
            group = shown(seen, name, storage)
            if console.is_terminal:
                live.update(group, refresh=True)
            elif (progress := _progress(seen)) != printed:
                console.print(group, soft_wrap=True)
                printed = progress
            if all(row.over for row in seen.rows):
                return
            time.sleep(EVERY)


def _progress(seen: Seen) -> str:
    """What has to change for a log to be told: no speeds, no times."""
    told = [
        (
            row.status.study,
            row.status.done,
            row.status.budget,
            row.status.parked,
            row.proof and row.proof.run,
        )
        for row in seen.rows
    ]
    return repr((told, seen.unreadable))
