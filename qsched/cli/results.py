"""The commands that prove a result, show it and take it away."""

import json
from pathlib import Path
from textwrap import wrap
from typing import Annotated

import typer
from rich.text import Text

from qsched.cli.options import (
    Accept,
    AllowCode,
    AsJson,
    Name,
    OutFolder,
    Quiet,
    StorageUrl,
    StudyName,
    StudyOrFile,
    StudyPath,
    Twin,
    Verbose,
    conclude,
    console,
    known,
    open_storage,
    open_study,
    until_deleted,
)


def validate(
    study: StudyOrFile,
    name: Name = None,
    storage: StorageUrl = None,
    allow_code: AllowCode = None,
    controls: Annotated[
        str | None,
        typer.Option(
            help="Searches to compare with: full-precision, alignment, quality, grid, or all; "
            "made first where they are missing.",
            show_default=False,
        ),
    ] = None,
    accept: Accept = None,
    out: OutFolder = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Compare a finished study's best few with the unmodified schedule on held-out prompts.

    Controls are studies of the same database, such as demo.full-precision. Ctrl-C loses nothing;
    the same command goes on from there.

    Example: [bold]qsched validate demo --controls full-precision,grid[/]
    """
    from qsched import api
    from qsched.cli import display

    database = open_storage(storage)
    stored = open_study(database, study, name=name, allow=allow_code)
    wanted = [part.strip() for part in (controls or "").split(",") if part.strip()]
    with until_deleted():
        with display.shown(console, quiet=quiet or as_json, verbose=verbose) as observer:
            result = api.validate(
                stored, controls=wanted, accept=accept or (), out=out, observer=observer
            )
        conclude(result, str(database), as_json=as_json)


def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Studies of the database, two or more.", show_default=False, autocompletion=known
        ),
    ],
    storage: StorageUrl = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the page.", show_default="runs/compare"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set validated studies with the same held-out prompts beside the first of them: a table with
    paired intervals, and one page with pictures side by side. Needs no GPU.

    Example: [bold]qsched compare demo demo-ramp --out compared/[/]
    """
    from qsched import api
    from qsched.report import compare as comparisons

    database = open_storage(storage)
    path, found = api.compare([api.load(database, name) for name in names], out)
    if as_json:
        console.print_json(json.dumps({"page": str(path), **found.to_dict()}))
        return
    console.print(comparisons.terminal(found, console.width), soft_wrap=True)
    console.print(Text("\n".join(wrap(comparisons.NOTE, min(console.width, 80)))), style="dim")
    console.print(Text(f"look at        {path}"), soft_wrap=True)


def report(
    name: StudyName,
    storage: StorageUrl = None,
    out: OutFolder = None,
    as_json: AsJson = False,
) -> None:
    """Write a study's report: one HTML page that needs no network, and its JSON. Needs no GPU.

    From any machine with the database. Before the verdict the page shows the search, and says that
    nothing is proven. With --json the JSON is printed as well as written.

    Example: [bold]qsched report demo --out results/[/]
    """
    from qsched import api

    study = api.load(open_storage(storage), name)
    paths, content = api.write_report(study, out or Path("runs") / name)
    if as_json:
        console.print_json(json.dumps(content))
        return
    for path in paths:
        console.print(Text(str(path.resolve())), soft_wrap=True)


def export(
    name: StudyName,
    out: Annotated[Path, typer.Option("--out", help="Where to write.", show_default=False)],
    storage: StorageUrl = None,
    allow_code: AllowCode = None,
    force: Annotated[
        bool, typer.Option("--force", help="The best found even if it is not proven.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Put the folder's files into this repository of the hub, too.",
            show_default=False,
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="A repository that --push makes is not private.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the folder to take away: coefficients, a scheduler for plain diffusers, a README.

    Without the verdict improved the coefficients are all 1, unless forced. --push needs the hub's
    login; the README carries what the hub shows.

    Example: [bold]qsched export demo --out calibrated/[/]
    """
    from qsched import api
    from qsched.cli import display
    from qsched.proof.outcome import outcome_of

    study = open_study(open_storage(storage), name, allow=allow_code)
    paths = api.take_away(study, out, force=force)
    pushed = push and api.push(paths, out, push, public=public)
    if as_json:
        written = json.loads(paths[0].read_text(encoding="utf-8"))
        listed = [str(path.resolve()) for path in paths]
        more = {"pushed": pushed} if pushed else {}
        console.print_json(json.dumps({"files": listed, **more, **written}))
    else:
        proof = outcome_of(study, study.status())
        display.taken_away(console, paths, proof, proof.taken(force=force), pushed or "")


def preview(
    study: StudyPath,
    out: OutFolder = None,
    twin: Twin = False,
    as_json: AsJson = False,
) -> None:
    """Draw four captions, full precision beside quantized, before any budget is spent.

    Writes preview.png and preview.html, and says whether they look like images: by contrast,
    saturation and sharpness, and by how much better each fits its own caption than the others'.

    Example: [bold]qsched preview studies/demo.toml --out preview/[/]
    """
    from qsched import api

    definition = api.load_study(study, fetch=not twin)
    paths, found = api.preview(definition.twin() if twin else definition, out)
    if as_json:
        console.print_json(json.dumps(found))
        return
    for path in paths:
        console.print(Text(str(path)), soft_wrap=True)
    console.print(Text(f"network   {found['network']}"), soft_wrap=True)
    console.print(Text(found["sentence"]), soft_wrap=True)
    for doubt in [] if twin else found["doubts"]:
        console.print(Text(f"doubt     {doubt}"), style="yellow", soft_wrap=True)


def generate(
    model: Annotated[
        str, typer.Option(help="A model, a folder, owner/name, module:function or a study file.")
    ],
    prompts: Annotated[
        str, typer.Option(help="Captions: text, JSONL, JSON, YAML, CSV, TSV, or hf://.")
    ],
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


COMMANDS = (preview, validate, compare, report, export, generate)
