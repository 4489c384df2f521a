"""Passwords stay out of what is printed, logged and raised.

Whoever learns a secret says so to `keep`; the command line lets all of its output and its logs
through `redacted`, which also knows passwords by where they stand: in a URL's userinfo, and behind
`password=`.
"""

import json
import logging
import re
from collections.abc import Iterable
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus

MASK = "***"

SHORTEST = 4
"""Characters of a secret that is looked for: shorter ones are parts of ordinary words."""

_PLACES = re.compile(
    r"""(://[^\s:@/]*:) [^\s"]* (?=@)
    |   (\b(?:ssl)?password=) [^\s&'"]+""",
    re.VERBOSE,
)

_kept: set[str] = set()


def keep(secrets: Iterable[str]) -> None:
    """Keeps secrets out of what this process says from now on, however they are written."""
    for secret in secrets:
        if len(secret) >= SHORTEST:
            _kept.update(
                (
                    secret,
                    quote(secret, safe=""),
                    quote(secret, safe=" +"),
                    quote_plus(secret),
                    json.dumps(secret)[1:-1],
                    repr(secret)[1:-1],
                )
            )


def redacted(text: str) -> str:
    """A text without secrets."""
    for secret in sorted(_kept, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _PLACES.sub(lambda found: (found[1] or found[2]) + MASK, text)


class Redacting(logging.Formatter):
    """A formatter of log records, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or the lines, without secrets."""
        return redacted(super().format(record))


def redacted_stream(stream: TextIO) -> TextIO:
    """The stream, to which everything is written without secrets; each `write` by itself."""
    return cast(TextIO, _Redacted(stream))


class _Redacted:
    """Another stream, but for what writes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
