"""The command line: parse, call `api`, print. Nothing slow is imported before it is needed."""

import logging
import os
import sys
from typing import Annotated

import typer
from rich.text import Text

from qsched import __version__
from qsched.cli import results, studies, tools
from qsched.cli.options import INTERRUPTED, console
from qsched.cli.terminal import Formatter, Plain
from qsched.errors import QschedError
from qsched.redaction import redacted_stream

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The console script: an expected error is one line without a traceback, and exit code 2.

    All that is printed, a traceback too, is printed without the database's password.
    """
    sys.stdout, sys.stderr = map(redacted_stream, (sys.stdout, sys.stderr))
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)  # what is less goes into a worker's own log
    handler.setFormatter(Formatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # read when it is imported
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except QschedError as error:
        errors = Plain(stderr=True)
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


for panel, commands in (
    ("Studies", studies.COMMANDS),
    ("Results", results.COMMANDS),
    ("Tools", tools.COMMANDS),
):
    for command in commands:
        app.command(rich_help_panel=panel)(command)
