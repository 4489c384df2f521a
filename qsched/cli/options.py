"""Options and arguments that several commands share, and how they open the database."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from qsched.service.storage import Storage

console = Console(highlight=False)

INTERRUPTED = 130
"""The exit code of a command that a signal stopped; the same command goes on from there."""

StudyPath = Annotated[Path, typer.Argument(help="A study file.", show_default=False)]
StudyName = Annotated[str, typer.Argument(help="A study of the database.", show_default=False)]
StorageUrl = Annotated[
    str | None,
    typer.Option(
        "--storage",
        help="Database URL.",
        envvar="QSCHED_STORAGE",
        show_default="sqlite:///storage/qsched.db",
    ),
]
OutFolder = Annotated[
    Path | None, typer.Option("--out", help="Folder of the results.", show_default="runs/NAME")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str | None, typer.Option(help="Another name than the file's.", show_default=False)]
Trials = Annotated[
    int | None, typer.Option(help="Another budget than the file's.", show_default=False)
]
Twin = Annotated[
    bool,
    typer.Option("--twin", help="A tiny model of the same class with random weights; offline."),
]
Accept = Annotated[
    list[str] | None,
    typer.Option(
        "--accept",
        metavar="KEY",
        help="A key of the fingerprint that may differ; recorded in the study.",
        show_default=False,
    ),
]


def open_storage(url: str | None, *, patience: float | None = None) -> "Storage":
    """The database of a URL, or of QSCHED_STORAGE, or the default one."""
    from qsched.service.database import Database
    from qsched.service.storage import Storage

    return Storage(Database(url) if patience is None else Database(url, patience=patience))
