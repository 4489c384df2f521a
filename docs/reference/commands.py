"""Puts each command's own help into reference/commands.md while mkdocs builds the site."""

import re
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from qsched.cli.main import app

MARK = "<!-- The site has each command's help here; in a terminal: qsched COMMAND --help -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What mkdocs calls for every page; only the one with the mark changes."""
    return markdown.replace(MARK, "\n".join(sections()))


def sections() -> Iterator[str]:
    """A section a command: what it does, an example, its arguments and options."""
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        said, _, example = str(command.help).partition("Example:")
        yield f"\n### {name}\n\n{said.strip()}\n"
        yield f"```bash\n{_plain(example)}\n```\n"
        yield "| | | default |\n|---|---|---|"
        yield from (_row(parameter) for parameter in command.params)


def _row(parameter: Any) -> str:
    default = parameter.show_default or ""
    if default is True:
        default = parameter.default
    shown = "" if default in (None, False, "") else f"`{default}`"
    if parameter.envvar:
        shown = f"`{parameter.envvar}`, else {shown}"
    if parameter.required:
        shown = "required"
    return f"| `{_named(parameter)}` | {_plain(parameter.help)} | {shown} |"


def _named(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper() + (" ..." if parameter.nargs == -1 else "")
    value = "" if parameter.is_flag else f" {parameter.metavar or 'VALUE'}"
    return f"{parameter.opts[0]}{value}"


def _plain(text: str) -> str:
    """Without rich's markup."""
    return re.sub(r"\[/?(bold)?\]", "", " ".join(text.split()))
