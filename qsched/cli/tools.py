"""The commands that look at models, machines and databases."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from qsched.cli.options import (
    AsJson,
    StorageUrl,
    console,
    open_storage,
)


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


def doctor(
    study: Annotated[
        Path | None, typer.Argument(help="A study file to be run here.", show_default=False)
    ] = None,
    storage: StorageUrl = None,
    as_json: AsJson = False,
) -> None:
    """Check machine, database and study: each line ok, or what to do. Exit 1 if one is not.

    Example: [bold]qsched doctor studies/demo.toml[/]
    """
    from dataclasses import asdict

    from qsched.cli.doctor import examine

    findings = []
    for finding in examine(storage, study):
        findings.append(finding)
        if not as_json:
            mark = ("ok   ", "green") if finding.ok else ("wrong", "bold red")
            line = Text.assemble(mark, f"  {finding.name:<16} {finding.words}")
            console.print(line, soft_wrap=True)
    if as_json:
        console.print_json(json.dumps([asdict(finding) for finding in findings]))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def dashboard(
    storage: StorageUrl = None,
    port: Annotated[int, typer.Option(help="0 takes any free one.", min=0, max=65535)] = 8080,
    artifacts: Annotated[
        str | None,
        typer.Option(
            help="Folder or s3://bucket of the pictures.",
            envvar="QSCHED_ARTIFACTS",
            show_default=False,
        ),
    ] = None,
    writable: Annotated[bool, typer.Option("--writable", help="Allow changes.")] = False,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Let every user of this machine look.")
    ] = False,
) -> None:
    """Look at all studies in optuna-dashboard, on 127.0.0.1 only, read-only unless asked.

    The printed link lets in; the browser keeps it in a cookie until the command ends. From
    elsewhere: ssh -L 8080:127.0.0.1:8080 HOST, then the same link.

    Example: [bold]qsched dashboard --port 8080[/]
    """
    from qsched.cli import access
    from qsched.cli import dashboard as pages

    pages.serve(
        open_storage(storage),
        port=port,
        artifacts=artifacts,
        writable=writable,
        token=None if no_token else access.new_token(),
        on_ready=lambda url: console.print(
            Text(f"dashboard {url}  (Ctrl-C ends it)"), soft_wrap=True
        ),
    )


COMMANDS = (models, doctor, dashboard)
