"""The one way out to a terminal: what is printed can say anything, and do nothing.

Names and reasons come from a database that others may write. They are never read as markup, and
characters that steer a terminal, or turn the order of the text, are shown as escapes.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from qsched.redaction import Redacting

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """The text with what would steer a terminal as escapes; line breaks and tabs stay."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


LABEL = 14
"""Columns of the labels that `facts` puts before what they say, and a space."""


def facts(said: Iterable[tuple[str, str | Path | Text]], width: int) -> Text:
    """A line for each (label, what it says) within `width` columns; what is longer goes on below,
    and no word is split. A path stays on its line, to be copied. To be printed with soft_wrap."""
    lines: list[Text] = []
    for label, value in said:
        text = value if isinstance(value, Text) else Text(str(value))
        whole = isinstance(value, Path) or len(text.plain) <= width - LABEL - 1
        for index, (start, end) in enumerate(
            [(0, len(text.plain))] if whole else _broken(text.plain, width - LABEL - 1)
        ):
            lines.append(Text(f"{'' if index else label:<{LABEL}} ") + text[start:end])
    return Text("\n").join(lines)


def _broken(text: str, width: int) -> list[tuple[int, int]]:
    """Where lines of whole words begin and end, each at most `width` long if its words are."""
    ends: list[tuple[int, int]] = []
    for word in re.finditer(r"[^ ]+", text):
        if ends and word.end() - ends[-1][0] <= width:
            ends[-1] = ends[-1][0], word.end()
        else:
            ends.append(word.span())
    return ends


class Plain(Console):
    """A console for any text. Colours are the program's own: `Text` and styles, no markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Every piece of text that is printed comes through here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=harmless(segment.text))


class Formatter(Redacting):
    """Of log messages, for terminals and files: without passwords, and harmless."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, and the traceback where there is one."""
        return harmless(super().format(record))
