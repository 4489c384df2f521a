"""Options and arguments that several commands share, and how they open the database."""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from qsched.cli.terminal import Plain
from qsched.errors import QschedError, StudyError, StudyGone

if TYPE_CHECKING:
    from qsched.api import Outcome
    from qsched.service.storage import Storage
    from qsched.service.stored_study import StoredStudy

console = Plain()

INTERRUPTED = 130
"""The exit code of a command that a signal stopped; the same command goes on from there."""


def known(context: typer.Context, incomplete: str) -> list[str]:
    """The studies of the database whose names begin so, for the shell; none where that can't be
    told at once."""
    from qsched.service.database import Database
    from qsched.service.storage import Storage

    try:
        url = context.params.get("storage")
        names = Storage(Database(url, patience=GLANCE)).study_names() if begun(url) else []
    except QschedError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def known_or_files(context: typer.Context, incomplete: str) -> list[str]:
    """The same, and study files."""
    found = sorted(Path().glob(f"{glob.escape(incomplete)}*"))
    folders = [f"{path}/" for path in found if path.is_dir()]
    files = [str(path) for path in found if path.suffix == ".toml"]
    return [*known(context, incomplete), *files, *folders]


GLANCE = 1.0
"""Seconds that a shell's completion waits for a database."""

StudyPath = Annotated[Path, typer.Argument(help="A study file.", show_default=False)]
StudyName = Annotated[
    str,
    typer.Argument(help="A study of the database.", show_default=False, autocompletion=known),
]
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
Workers = Annotated[
    int, typer.Option(help="So many processes; on this machine, over its GPUs.", min=1)
]
Twin = Annotated[
    bool,
    typer.Option("--twin", help="A tiny model of the same class with random weights; offline."),
]
StudyOrFile = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A study of the database; or its file at hand, whose plug-ins may run.",
        show_default=False,
        autocompletion=known_or_files,
    ),
]
AllowCode = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-code",
        metavar="MODULE",
        help="A module of plug-ins that a stored study may run without its file at hand; or a "
        "scorer that may run code of the hub's, such as pyiqa:qalign.",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the result alone, and errors.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Print what a worker's log says, each trial among it.")
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


class Required(StrEnum):
    """What `--require` may ask for."""

    IMPROVED = "improved"


Require = Annotated[
    Required | None,
    typer.Option(
        "--require", help="Exit 1 unless the verdict is this one, for scripts.", show_default=False
    ),
]

UNMET = 1
"""The exit code of a run whose verdict is another than the one that was required."""


def conclude(
    result: "Outcome", database: str, *, as_json: bool, require: Required | None = None
) -> None:
    """Shows how a run ended, or prints its report.json; exits with 130 if a signal stopped it, and
    with 1 if its verdict isn't what is required."""
    from qsched.cli import display
    from qsched.report import files

    if not as_json:
        display.outcome(console, result, database)
    elif result.folder:
        console.print_json((result.folder / files.NUMBERS).read_text(encoding="utf-8"))
    if not result.finished:
        raise typer.Exit(INTERRUPTED)
    if require and str(result.verdict) != require.value:
        raise typer.Exit(UNMET)


@contextmanager
def until_deleted() -> Iterator[None]:
    """A study that somebody deletes in the meantime ends a command: in one line, and no failure."""
    try:
        yield
    except StudyGone as gone:
        console.print(Text(f"ended     {gone}"), soft_wrap=True)


def begun(url: str | None) -> bool:
    """Whether there is a database, as far as that can be told without opening it: a file."""
    from qsched.service.database import Database

    path = Database(url).path
    return path is None or path.exists()


def nothing_in(url: str | None) -> str:
    """What is said of a database without studies."""
    from qsched.service.database import Database

    return f"no studies yet in {Database(url)}; start one with qsched run STUDY.toml"


def open_study(
    storage: "Storage", subject: str, *, name: str | None = None, allow: list[str] | None = None
) -> "StoredStudy":
    """The stored study that a person means by its name, or by its file and perhaps another name
    than the file's; with what code it may run."""
    from qsched import api
    from qsched.study.study import is_file

    file = api.load_study(subject, fetch=False) if is_file(subject) else None
    if name and file is None:
        raise StudyError(f"--name {name}: expected a study file before it; drop one of both names")
    stored = name or (file.name if file else subject)
    return api.load(storage, stored, file=file, allow=allow or ())


def open_storage(url: str | None, *, patience: float | None = None, new: bool = False) -> "Storage":
    """The database of a URL, or of QSCHED_STORAGE, or the default one.

    `new`: a file is made where it is missing; without, StudyError says that there are no studies.
    """
    from qsched.service.database import Database
    from qsched.service.storage import Storage

    database = Database(url) if patience is None else Database(url, patience=patience)
    if not new and not begun(url):
        raise StudyError(nothing_in(url))
    return Storage(database)
