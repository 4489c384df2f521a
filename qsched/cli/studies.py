"""The commands that write, run and watch studies, on one machine or in a shared database."""

import json
import logging
import os
import shlex
import socket
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.text import Text

from qsched.cli.options import (
    Accept,
    AllowCode,
    AsJson,
    Name,
    OutFolder,
    Quiet,
    Require,
    Required,
    StorageUrl,
    StudyName,
    StudyOrFile,
    StudyPath,
    Trials,
    Twin,
    Verbose,
    Workers,
    begun,
    conclude,
    console,
    known,
    known_or_files,
    nothing_in,
    open_storage,
    open_study,
    until_deleted,
)
from qsched.cli.terminal import Formatter
from qsched.errors import QschedError, StudyError, Unreadable
from qsched.files import outputs

if TYPE_CHECKING:
    from qsched.api import Observer
    from qsched.service.stored_study import StoredStudy
    from qsched.study.study import Study

WORKER_PATIENCE = 600.0
"""Seconds that a worker waits for a database that is away."""

DEMO_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
"""All of the demo is in the package; and its threads leave the cores to whoever has work."""


def init(
    model: Annotated[
        str,
        typer.Argument(
            help="A model of qsched models, a diffusers folder, or owner/name on the hub.",
            show_default=False,
        ),
    ],
    quantization: Annotated[
        str | None,
        typer.Option(help="A scheme such as w8a8 or nf4.", show_default="w4a8"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write.", show_default="NAME.toml")
    ] = None,
) -> None:
    """Write a commented study file for a model, with the paper's settings; for a folder, a single
    file or a repository with the class, scheduler, size and dtype that its files tell.

    Example: [bold]qsched init flux-schnell --quantization nf4[/]
    """
    from qsched.errors import ConfigError
    from qsched.pipelines.catalog import is_checkpoint, is_folder
    from qsched.study.template import own_study_text, study_text

    name = out.stem if out else None
    if is_folder(model) or is_checkpoint(model) or ("/" in model and ":" not in model):
        text = own_study_text(model, scheme=quantization, steps=steps, name=name)
    else:
        text = study_text(model, scheme=quantization or "w4a8", steps=steps, name=name)
    path = out or Path(tomllib.loads(text)["name"] + ".toml")
    if path.exists():
        raise ConfigError(f"{path} exists; give another file with --out")
    outputs.write(path, text)
    console.print(Text(f"{path}"), soft_wrap=True)
    console.print(Text(f"next      qsched check {shlex.quote(str(path))}"), soft_wrap=True)


def check(
    studies: Annotated[
        list[Path], typer.Argument(help="One or more study files.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Validate study files, and say what each will cost. Needs no GPU.

    Example: [bold]qsched check studies/*.toml[/]
    """
    from qsched.api import cost
    from qsched.pipelines.effective import effective, warnings

    costs: list[dict[str, Any]] = []
    drawn: list[str] = []
    problems: list[str] = []
    for path in studies:
        try:
            study = _checked(path)
            tables = study.tables.model, study.tables.sampling
            told = {
                "weights": study.weights,
                "effective": effective(*tables).to_dict(),
                "warnings": warnings(*tables),
            }
            costs.append({"file": str(path), **cost(study), **told})
            drawn.append(_drawn(study))
        except QschedError as error:
            problems.append(str(error))
    if as_json:
        console.print_json(json.dumps(costs))
    else:
        for row, words in zip(costs, drawn, strict=True):
            console.print(Text.assemble(("ok", "green"), f"  {row['file']}"), soft_wrap=True)
            console.print(Text(f"    weights {row['weights']}"), soft_wrap=True)
            console.print(Text(f"    draws   {words}"), soft_wrap=True)
            _warn(row["warnings"])
            console.print(
                f"    search  {row['trials']} trials x {_prompts(row)}: "
                f"{row['images']:,} images, {row['network_calls']:,} network calls\n"
                f"    proof   {row['held_out_images']:,} images\n"
                f"    disk    {row['disk_bytes'] / 1e6:.1f} MB in the database"
                f"{_downloads(row)}\n"
                f"    grid    the official 50 x 50 search takes {row['grid_images']:,} images",
                soft_wrap=True,
            )
    if problems:
        raise QschedError("\n".join(problems))


def _drawn(study: "Study") -> str:
    """What images are drawn with, in one line."""
    from qsched.pipelines.effective import effective

    sampling = study.tables.sampling
    return f"{sampling.steps} steps, {effective(study.tables.model, sampling).words}"


def _warn(lines: list[str]) -> None:
    for line in lines:
        console.print(Text(f"    warning {line}"), style="yellow", soft_wrap=True)


def _checked(path: Path) -> "Study":
    """A study file that can be run, as far as this machine tells without a GPU."""
    from qsched.api import load_study
    from qsched.service import launchers

    study = load_study(path, fetch=False)
    try:
        with study.code():
            launchers.launcher_named(study.tables.execution.launcher)
    except QschedError as error:
        raise QschedError(f"{path}: {error}") from error
    return study


def _prompts(row: dict[str, Any]) -> str:
    """How many prompts a trial has, and of how many."""
    each, pool = row["prompts_per_trial"], row["prompts"]
    return f"{pool} prompts" if each == pool else f"{each} of {pool} prompts"


def _downloads(row: dict[str, Any]) -> str:
    """What has to be fetched once, and the GPU."""
    if not row["download_gb"]:
        return ""
    gpu = f"; a GPU with about {row['gpu_gb']:.0f} GB" if row["gpu_gb"] else ""
    return f", {row['download_gb']:.1f} GB to download once{gpu}"


def run(
    study: Annotated[
        Path,
        typer.Argument(
            help="A study file, or a study of the database.",
            show_default=False,
            autocompletion=known_or_files,
        ),
    ],
    name: Name = None,
    storage: StorageUrl = None,
    trials: Trials = None,
    workers: Workers = 1,
    accept: Accept = None,
    out: OutFolder = None,
    twin: Twin = False,
    allow_code: AllowCode = None,
    require: Require = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Create or resume a study, spend its budget, prove the result, write it down.

    Of a study that was extended the larger budget is spent, also if it is extended meanwhile.

    Ctrl-C stops after the batch in hand, and again at once; the same command goes on from there.
    With --json the content of report.json is all that is printed.

    Example: [bold]qsched run studies/demo.toml --trials 96 --workers 2[/]
    """
    from qsched import api
    from qsched.study.study import is_file

    file = is_file(study)
    found = (
        api.load_study(study, fetch=not twin)
        if file
        else open_study(open_storage(storage), str(study), allow=allow_code).definition
    )
    definition = found.changed(name=name, trials=trials)
    if twin:
        definition = definition.twin()
    study_to_run = definition.allowing(allow_code or ())
    how = Heard(quiet, verbose, as_json)
    _run(study_to_run, storage, workers, accept or [], out, require=require, how=how)


def demo(
    storage: StorageUrl = None,
    trials: Trials = None,
    workers: Workers = 1,
    out: OutFolder = None,
    require: Require = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Run the study that ships with qsched: a small model at four bits, in two minutes on two CPU
    cores. It needs no GPU, no file, no network.

    Ctrl-C stops after the batch in hand; the same command goes on from there.

    Example: [bold]qsched demo --trials 50[/]
    """
    for variable, value in DEMO_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from qsched import api
    from qsched.study.template import DEMO

    definition = api.load_study(DEMO).changed(trials=trials)
    how = Heard(quiet, verbose, as_json)
    _run(definition, storage, workers, [], out, require=require, how=how)


class Heard(NamedTuple):
    """How much of a run is told."""

    quiet: bool
    verbose: bool
    as_json: bool


def _run(
    definition: "Study",
    storage: str | None,
    workers: int,
    accept: list[str],
    out: Path | None,
    *,
    require: Required | None,
    how: Heard,
) -> None:
    """Runs a study to its verdict, and shows it."""
    from qsched import api
    from qsched.cli import display
    from qsched.study import packages

    packages.require(definition)
    database = open_storage(storage, new=True)
    silent = how.quiet or how.as_json
    if not silent:
        _begin(definition, str(database))
    with until_deleted():
        with display.shown(console, quiet=silent, verbose=how.verbose) as observer:
            result = api.run(
                definition,
                storage=database,
                workers=workers,
                accept=accept,
                out=out,
                observer=observer,
            )
        conclude(result, str(database), as_json=how.as_json, require=require)


def _begin(definition: "Study", database: str) -> None:
    """Says what is about to be run."""
    from qsched.pipelines.effective import warnings

    console.print(Text(f"study     {definition.name} in {database}"), soft_wrap=True)
    console.print(Text(f"draws     {_drawn(definition)}"), soft_wrap=True)
    _warn(warnings(definition.tables.model, definition.tables.sampling))
    if definition.tables.model.twin:
        words = "twin      random weights and small images: it tries the study, it proves nothing"
        console.print(Text(words), style="yellow", soft_wrap=True)


def create(
    study: StudyPath,
    name: Name = None,
    storage: StorageUrl = None,
    trials: Trials = None,
    accept: Accept = None,
    as_json: AsJson = False,
) -> None:
    """Enter a study and its trials into the database, for workers to find. Needs no GPU.

    The same file may be entered again: a larger budget adds trials, and workers that start from
    then on take what changed in [execution] and [gallery]; nothing else may change.

    Example: [bold]qsched create studies/demo.toml --storage postgresql://me@host/qsched[/]
    """
    from qsched import api
    from qsched.cli import display

    definition = api.load_study(study).changed(name=name, trials=trials)
    database = open_storage(storage, new=True)
    changed: dict[str, tuple[Any, Any]] = {}
    stored = api.create(database, definition, accept=accept or (), on_change=changed.update)
    status = stored.status()
    if as_json:
        console.print_json(json.dumps(status.to_dict()))
        return
    console.print(Text(f"study     {status.study} in {database}"), soft_wrap=True)
    if status.budget > definition.trials:
        display.LiveProgress(console).extended(definition.trials, status.budget)
    for line in display.settings_taken(changed):
        console.print(line, soft_wrap=True)
    console.print(f"trials    {status.done}/{status.budget}, {status.waiting} waiting")
    console.print(Text(f"next      qsched work {status.study}, on every machine"))


def work(
    study: StudyOrFile,
    name: Name = None,
    storage: StorageUrl = None,
    allow_code: AllowCode = None,
    device: Annotated[
        str | None,
        typer.Option(help="Another device than the study's, such as cuda:1.", show_default=False),
    ] = None,
    all_devices: Annotated[
        bool,
        typer.Option("--all-devices", help="A worker on each GPU of this machine, or one without."),
    ] = False,
    max_trials: Annotated[
        int | None, typer.Option(help="Stop after so many trials.", min=1, show_default=False)
    ] = None,
    idle_exit: Annotated[
        bool, typer.Option("--idle-exit", help="End with the budget instead of waiting for more.")
    ] = False,
    grace: Annotated[
        float, typer.Option(help="Seconds that the trial in hand may take when asked to stop.")
    ] = 60.0,
    log: Annotated[
        Path | None,
        typer.Option(help="The log's file, or a folder for it.", show_default="runs/NAME/workers/"),
    ] = None,
    accept: Accept = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Work on a study as one worker, or as one on each GPU of this machine; on any machine.

    It works only with the library versions and weights that the study began with, and ends when
    the study is deleted. A log is kept, with --all-devices one a worker.

    SIGTERM or Ctrl-C: no more work, the trial in hand is finished within the grace or given back,
    exit 0. Ctrl-C again: it is given back at once.

    What a study names as module:name runs with the study file in NAME's place, or --allow-code.

    With --all-devices this command ends with its workers, which get its signals, and fails with the
    exit code of the first that failed.

    Example: [bold]qsched work demo --all-devices --idle-exit[/]
    """
    from qsched import api
    from qsched.cli import display

    database = open_storage(storage, patience=WORKER_PATIENCE)
    stored = open_study(database, study, name=name, allow=allow_code)
    if all_devices:
        if device:
            raise StudyError(f"--device {device} and --all-devices: expected one; drop the other")
        stored.require_agreement(accept or ())
        with until_deleted():
            options = _options(max_trials, idle_exit, grace)
            with display.shown(console, quiet=quiet, verbose=verbose) as observer:
                _work_on_all_devices(stored, log, grace, observer, *options)
        return
    with _logging_to(log, stored.name) as kept, until_deleted():
        if not quiet:
            console.print(Text(f"study     {stored.name} in {database}"), soft_wrap=True)
            console.print(Text(f"log       {kept.resolve()}"), soft_wrap=True)
        with display.shown(console, quiet=quiet, verbose=verbose) as observer:
            api.work(
                stored,
                device=device,
                max_trials=max_trials,
                stay=not idle_exit,
                grace=grace,
                accept=accept or (),
                observer=observer,
            )
        status = stored.status()
        console.print(f"trials    {status.done}/{status.budget}")


def _options(max_trials: int | None, idle_exit: bool, grace: float) -> list[str]:
    """The options of `work` that each of several workers gets."""
    trials = [] if max_trials is None else ["--max-trials", str(max_trials)]
    return [*trials, *["--idle-exit"] * idle_exit, "--grace", str(grace)]


def _work_on_all_devices(
    study: "StoredStudy", log: Path | None, grace: float, observer: "Observer", *options: str
) -> None:
    from qsched.pipelines.devices import gpus
    from qsched.service import launchers

    devices = gpus()
    logs = outputs.ready(log or _logs(study.name), "--log")
    options = (*options, "--log", str(logs))
    crew = launchers.crew_of(study, len(devices) or 1, logs, *options, spread=True)
    console.print(Text(f"study     {study.name} in {study.storage}"), soft_wrap=True)
    console.print(Text(f"workers   {', '.join(devices) or '1'}"), soft_wrap=True)
    console.print(Text(f"logs      {logs.resolve()}"), soft_wrap=True)
    ended = launchers.work(
        study,
        crew,
        launchers.Local(lambda: devices),
        on_look=observer.working,
        on_stop=lambda: observer.stopping(grace),
    )
    status = study.status()
    console.print(f"trials    {status.done}/{status.budget}")
    if ended.failed is not None:
        console.print(Text(f"failed    {launchers.last_words(crew, ended.failed)}"), soft_wrap=True)
        raise typer.Exit(ended.codes[ended.failed])


def status(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A study; all of them without.", show_default=False, autocompletion=known
        ),
    ] = None,
    storage: StorageUrl = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Look again every 2 s, until all is done or Ctrl-C."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Where one study stands, or all of the database; returns what dead workers held to the queue.

    Of one study: verdict, coefficients, the time that is left at its workers' speed, and where its
    results lie.

    Example: [bold]qsched status demo --watch[/]
    """
    from qsched.cli import watching

    if watch and as_json:
        raise StudyError("--watch and --json: expected one; drop the other")
    database = open_storage(storage) if name or begun(storage) else None
    if database and watch:
        with suppress(KeyboardInterrupt):
            watching.watch(database, name)
        return
    seen = watching.look(database, name) if database else watching.Seen([], {})
    if as_json:
        console.print_json(watching.as_json(seen, name))
    elif database and any(seen):
        console.print(watching.shown(seen, name, database), soft_wrap=True)
    else:
        console.print(Text(nothing_in(storage)), soft_wrap=True)


def extend(
    name: StudyName,
    trials: Annotated[
        str, typer.Option(help="The new budget, or +N for so many more.", show_default=False)
    ],
    storage: StorageUrl = None,
) -> None:
    """Give a study a larger budget; workers that wait go on.

    Example: [bold]qsched extend demo --trials +50[/]
    """
    from qsched import api

    study = api.load(open_storage(storage), name)
    console.print(f"trials    {study.extend(trials)}")
    if not study.status().alive:
        console.print(
            Text(f"nobody works on it; go on with qsched run {name}, or qsched work {name}")
        )


def pause(name: StudyName, storage: StorageUrl = None) -> None:
    """Let workers finish what they hold and claim nothing more.

    Example: [bold]qsched pause demo[/]
    """
    _pause(name, storage, paused=True)


def unpause(name: StudyName, storage: StorageUrl = None) -> None:
    """Let workers go on.

    Example: [bold]qsched unpause demo[/]
    """
    _pause(name, storage, paused=False)


def retry(name: StudyName, storage: StorageUrl = None) -> None:
    """Give the parked trials of a study another chance; what they had scored is kept.

    Example: [bold]qsched retry demo[/]
    """
    from qsched import api

    freed = api.load(open_storage(storage), name).retry()
    console.print(f"{freed} trials wait again")


def delete(
    name: StudyName,
    storage: StorageUrl = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Remove a study with its trials and scores from the database. Results in runs/ stay.

    Also one of which what is stored can't be read; its pictures, whose place is not known then,
    stay.

    Example: [bold]qsched delete demo[/]
    """
    from qsched import api
    from qsched.report import artifacts
    from qsched.service.queue import Queue

    database = open_storage(storage)
    incarnation = database.incarnation(name)
    try:
        study = api.load(database, name)
        status = study.status()
        what = f"{status.done} finished trials and {status.images:,} scored images"
    except Unreadable as error:
        study, what = None, f"all that is stored of it, which can't be read ({error})"
    if not yes:
        typer.confirm(f"delete study {name!r} with {what}?", abort=True)
    Queue(database.database, incarnation).require_rest()
    remains = artifacts.clear(study) if study else "its pictures, if there are any"
    database.delete_study(incarnation)
    console.print(Text(f"deleted   {name}"))
    if remains:
        console.print(Text(f"remains   {remains}"), style="yellow", soft_wrap=True)


def _pause(name: str, storage: str | None, *, paused: bool) -> None:
    from qsched import api

    study = api.load(open_storage(storage), name)
    study.storage.pause(study.incarnation, paused)
    running = study.status().running
    word = f"paused; {running} trials are still being finished" if paused else "goes on"
    console.print(Text(f"{name}     {word}"))


def _logs(study: str) -> Path:
    """The folder of a study's workers' logs."""
    return Path("runs") / study / "workers"


@contextmanager
def _logging_to(path: Path | None, study: str) -> Iterator[Path]:
    """While it lasts qsched's log goes to a file as well, with times; its path.

    `path`: of it, or of its folder. Raises StudyError if it can't be written.
    """
    if path is None or path.is_dir():
        folder = outputs.ready(path or _logs(study), "--log")
        path = folder / f"{socket.gethostname()}-{os.getpid()}.log"
    with outputs.written(path, option="--log"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("qsched")
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield path
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()


COMMANDS = (init, check, run, demo, create, work, status, extend, pause, unpause, retry, delete)
