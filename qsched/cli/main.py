"""The command line: parse, call `api`, print. Nothing slow is imported before it is needed."""

import json
import logging
import os
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from qsched import __version__
from qsched.cli import manage
from qsched.cli.options import (
    INTERRUPTED,
    Accept,
    AsJson,
    Name,
    OutFolder,
    StorageUrl,
    StudyName,
    StudyPath,
    Trials,
    Twin,
    console,
    open_storage,
)
from qsched.errors import QschedError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The console script: an expected error is one line without a traceback, and exit code 2."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)  # what is less goes into a worker's own log
    logging.basicConfig(format="%(message)s", handlers=[handler])
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    for chatty in ("bitsandbytes", "torch.utils._pytree", "torchao"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except QschedError as error:
        errors = Console(stderr=True, highlight=False)
        errors.print(Text("error: ", style="bold red") + Text(str(error)), soft_wrap=True)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _qsched(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """Calibrate the sampling schedule of a quantized few-step text-to-image model, and prove the
    gain on prompts that the search did not see.

    Example: [bold]qsched run studies/demo.toml[/]
    """
    if version:
        console.print(f"qsched {__version__}")
        raise typer.Exit


@app.command()
def init(
    model: Annotated[str, typer.Argument(help="A model of qsched models.", show_default=False)],
    quantization: Annotated[str, typer.Option(help="A scheme such as w8a8 or nf4.")] = "w4a8",
    steps: Annotated[int | None, typer.Option(help="Sampling steps.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write.", show_default="NAME.toml")
    ] = None,
) -> None:
    """Write a commented study file for a model, with the paper's settings.

    Example: [bold]qsched init flux-schnell --quantization nf4[/]
    """
    from qsched.errors import ConfigError
    from qsched.study.template import study_text

    text = study_text(model, scheme=quantization, steps=steps, name=out.stem if out else None)
    path = out or Path(tomllib.loads(text)["name"] + ".toml")
    if path.exists():
        raise ConfigError(f"{path} exists; give another file with --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    console.print(Text(f"{path}"), soft_wrap=True)
    console.print(Text(f"next      qsched check {path}"), soft_wrap=True)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models that qsched knows, and what each needs.

    Example: [bold]qsched models --json[/]
    """
    from dataclasses import asdict

    from qsched.cli import display
    from qsched.pipelines import catalog

    entries = list(catalog.MODELS.values())
    if as_json:
        console.print_json(json.dumps([asdict(entry) for entry in entries], default=dict))
    else:
        console.print(display.models(entries))
        console.print(
            Text("also: a diffusers folder, owner/name on the hub, or module:function"), style="dim"
        )


@app.command()
def check(
    studies: Annotated[
        list[Path], typer.Argument(help="One or more study files.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Validate study files, and say what each will cost. Needs no GPU.

    Example: [bold]qsched check studies/*.toml[/]
    """
    from qsched.api import cost, load_study

    costs: list[dict[str, Any]] = []
    problems: list[str] = []
    for path in studies:
        try:
            costs.append({"file": str(path), **cost(load_study(path, fetch=False))})
        except QschedError as error:
            problems.append(str(error))
    if as_json:
        console.print_json(json.dumps(costs))
    else:
        for row in costs:
            console.print(Text.assemble(("ok", "green"), f"  {row['file']}"), soft_wrap=True)
            console.print(
                f"    search  {row['trials']} trials x {row['prompts']} prompts: "
                f"{row['images']:,} images, {row['network_calls']:,} network calls\n"
                f"    proof   {row['held_out_images']:,} images\n"
                f"    disk    {row['disk_bytes'] / 1e6:.1f} MB in the database"
                f"{_downloads(row)}\n"
                f"    grid    the official 50 x 50 search takes {row['grid_images']:,} images",
                soft_wrap=True,
            )
    if problems:
        raise QschedError("\n".join(problems))


def _downloads(row: dict[str, Any]) -> str:
    """What has to be fetched once, and the GPU."""
    if not row["download_gb"]:
        return ""
    return (
        f", {row['download_gb']:.1f} GB to download once; a GPU with about {row['gpu_gb']:.0f} GB"
    )


@app.command()
def run(
    study: StudyPath,
    name: Name = None,
    storage: StorageUrl = None,
    trials: Trials = None,
    workers: Annotated[
        int, typer.Option(help="Processes on this machine, over its GPUs.", min=1)
    ] = 1,
    accept: Accept = None,
    out: OutFolder = None,
    twin: Twin = False,
) -> None:
    """Create or resume a study, spend its budget, prove the result, write it down.

    Ctrl-C stops after the batch in hand; the same command goes on from there.

    Example: [bold]qsched run studies/demo.toml --trials 96 --workers 2[/]
    """
    from qsched import api
    from qsched.cli import display

    definition = api.load_study(study, fetch=not twin).changed(name=name, trials=trials)
    if twin:
        definition = definition.twin()
    database = open_storage(storage)
    console.print(Text(f"study     {definition.name} in {database}"), soft_wrap=True)
    if twin:
        console.print(
            Text(
                "twin      random weights and small images: it tries the study, it proves nothing"
            ),
            style="yellow",
            soft_wrap=True,
        )
    with display.LiveProgress(console).live() as observer:
        result = api.run(
            definition,
            storage=database,
            workers=workers,
            accept=accept or (),
            out=out,
            observer=observer,
        )
    display.outcome(console, result, str(database))
    if not result.finished:
        raise typer.Exit(INTERRUPTED)


@app.command()
def validate(
    name: StudyName,
    storage: StorageUrl = None,
    controls: Annotated[
        str | None,
        typer.Option(
            help="Searches to compare with: full-precision, alignment, quality, grid, or all; "
            "made first where they are missing.",
            show_default=False,
        ),
    ] = None,
    out: OutFolder = None,
    as_json: AsJson = False,
) -> None:
    """Compare a finished study's best few with the unmodified schedule on held-out prompts.

    Controls are studies of the same database, such as demo.full-precision. Ctrl-C loses nothing;
    the same command goes on from there.

    Example: [bold]qsched validate demo --controls full-precision,grid[/]
    """
    from qsched import api
    from qsched.cli import display
    from qsched.report import files

    database = open_storage(storage)
    study = api.load(database, name)
    wanted = [part.strip() for part in (controls or "").split(",") if part.strip()]
    live = nullcontext(api.Observer()) if as_json else display.LiveProgress(console).live()
    with live as observer:
        result = api.validate(study, controls=wanted, out=out, observer=observer)
    if not as_json:
        display.outcome(console, result, str(database))
    elif result.folder:
        console.print_json((result.folder / files.NUMBERS).read_text(encoding="utf-8"))
    if not result.finished:
        raise typer.Exit(INTERRUPTED)


@app.command()
def export(
    name: StudyName,
    out: Annotated[Path, typer.Option("--out", help="Where to write.", show_default=False)],
    storage: StorageUrl = None,
    force: Annotated[
        bool, typer.Option("--force", help="The best found even if it is not proven.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the folder to take away: coefficients, a scheduler for plain diffusers, a README.

    Without the verdict improved the coefficients are all 1, unless forced.

    Example: [bold]qsched export demo --out calibrated/[/]
    """
    from qsched import api
    from qsched.cli import display
    from qsched.proof.outcome import outcome_of

    study = api.load(open_storage(storage), name)
    paths = api.take_away(study, out, force=force)
    if as_json:
        written = json.loads(paths[0].read_text(encoding="utf-8"))
        files = [str(path.resolve()) for path in paths]
        console.print_json(json.dumps({"files": files, **written}))
    else:
        proof = outcome_of(study, study.status())
        display.taken_away(console, paths, proof, proof.taken(force=force))


@app.command()
def generate(
    model: Annotated[
        str, typer.Option(help="A model, a folder, owner/name, module:function or a study file.")
    ],
    prompts: Annotated[str, typer.Option(help="Captions: text, JSONL, JSON, YAML, or hf://.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the images.")],
    coefficients: Annotated[
        Path | None,
        typer.Option(help="A coefficients.json; without it the unmodified schedule."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps, where no coefficients say so.", show_default=False)
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(help="A scheme such as w4a8.", show_default=False)
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="So many of the captions.", min=1, show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of all noise.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Images at once.", min=1)] = 16,
    twin: Twin = False,
) -> None:
    """Make an image set: numbered PNG files and a prompts.jsonl. Images that exist are kept.

    Example: [bold]qsched generate --model demo --coefficients runs/demo/coefficients.json
    --quantization w4a8 --prompts studies/prompts/demo-heldout.txt --out images/[/]
    """
    from rich.progress import track

    from qsched import api

    batches, missing = api.generate(
        model,
        prompts,
        out,
        coefficients=coefficients,
        steps=steps,
        quantization=quantization,
        count=count,
        seed=seed,
        batch_size=batch_size,
        twin=twin,
    )
    for _ in track(batches, total=missing, description="images", console=console):
        pass
    console.print(Text(f"{out.resolve()}"), soft_wrap=True)


for command in manage.COMMANDS:
    app.command()(command)
