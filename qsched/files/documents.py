"""Files that people bring: read without a surprise, parsed, or refused in one line.

    content = from_toml(read("studies/demo.toml"))

Whatever is wrong raises `DocumentError`, which says it without the file's name; a room puts that in
front, and its own kind of error around. Nothing here waits: a pipe or a device is no file.
"""

import json
import math
import os
import re
import reprlib
import stat
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qsched.errors import DocumentError, first_line, in_one_line

MEBIBYTE = 1 << 20

DEPTH = 64
"""Lists and tables in one another; whoever walks through a document needs no other limit."""

KEY_PARTS = 16
"""Parts of a dotted key of TOML: its parser's time grows with their square."""

WHOLE = range(-(2**63), 2**63)
"""Whole numbers as TOML has them, and databases."""

LONGEST_NAME = 255
LONGEST_PATH = 4096
"""Bytes, as Linux and most file systems have them."""

_PART = r"""(?:(?<![\w-])[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(
    rf"^[ \t]*\[*[ \t]*{_PART}(?:[ \t]*\.[ \t]*{_PART}){{{KEY_PARTS}}}"
    rf"|[{{,][ \t]*{_PART}(?:[ \t]*\.[ \t]*{_PART}){{{KEY_PARTS}}}",
    re.MULTILINE,
)

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def read(path: str | os.PathLike[str], *, most: int = MEBIBYTE) -> str:
    """The text of a regular file of at most `most` bytes, UTF-8, lines ending at \\n.

    A byte order mark is left out. Never waits. Raises DocumentError.
    """
    try:
        _require_file(os.stat(path), most)  # noqa: PTH116 - as the next one
        # Between the two it may have become a pipe, for which this flag doesn't wait.
        with open(  # pathlib's has no opener
            path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
        ) as stream:
            _require_file(os.fstat(stream.fileno()), most)
            content = stream.read(most + 1)
    except OSError as error:
        raise DocumentError(str(error.strerror)) from error
    except ValueError as error:  # a NUL in its name
        raise DocumentError(first_line(error)) from error
    if len(content) > most:
        raise _too_large(len(content), most)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError("it is not UTF-8 text; save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def located(source: str, folder: Path) -> Path:
    """The path that a person wrote, from `folder`, with ``~`` as home; whether something is there
    isn't looked at. Raises DocumentError for what can be no path."""
    if "\0" in source:
        raise DocumentError("it holds a NUL; expected a path")
    try:
        place = folder / Path(source).expanduser()
        encoded = os.fsencode(place)
    except (RuntimeError, UnicodeError) as error:
        reason = first_line(error).rstrip(".")
        raise DocumentError(f"{reason}; expected a path") from error
    if len(encoded) >= LONGEST_PATH or max(map(len, encoded.split(b"/"))) > LONGEST_NAME:
        raise DocumentError("it is too long for a path; correct it")
    return place


def is_file(place: Path) -> bool:
    """Whether a regular file is there; False for what is no path, and where nobody may look."""
    try:
        return place.is_file()
    except OSError:
        return False


def is_folder(place: Path) -> bool:
    """Whether a folder is there; False for what is no path, and where nobody may look."""
    try:
        return place.is_dir()
    except OSError:
        return False


def from_toml(text: str) -> dict[str, Any]:
    """A document without dates, which no key takes. Raises DocumentError."""
    if found := _LONG_KEY.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise DocumentError(f"line {line}: a key of more than {KEY_PARTS} parts; correct it")
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"not valid TOML: {first_line(error)}; correct it") from error
    _require_plain(content, strict=True)
    return content


def from_json(text: str, *, line: int = 1) -> Any:
    """Any document. `line`: the number of its first line, in the file. Raises DocumentError."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno + line - 1}: not valid JSON: {error.msg}"
        raise DocumentError(f"{place} at column {error.colno}; correct it") from error
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"not valid JSON: {first_line(error)}; correct it") from error
    _require_plain(content)
    return content


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises DocumentError."""
    content = from_json(read(path))
    if not isinstance(content, dict):
        raise DocumentError(f"{shown(content)} is all there is; expected a JSON object")
    return content


def from_yaml(text: str) -> Any:
    """Any document of YAML 1.1, dates among its values. Raises DocumentError."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the compiled one is ten times as fast
    try:
        content = yaml.load(text, Loader=loader)  # both are safe
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}: " if mark else ""
        raise DocumentError(f"{place}not valid YAML: {error.problem}; correct it") from error
    except Exception as error:  # its constructors of numbers and dates have any
        raise DocumentError(f"not valid YAML: {in_one_line(error)}; correct it") from error
    _require_plain(content)
    return content


def shown(value: Any, longest: int = 60) -> str:
    """`repr` of a value that may be of any size and depth, cut to so many characters."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxother = 3, longest + 1, longest + 1
    text = brief.repr(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _require_file(state: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(state.st_mode):
        kind = next((words for test, words in _KINDS if test(state.st_mode)), "a device")
        raise DocumentError(f"it is {kind}; expected a file")
    if state.st_size > most:
        raise _too_large(state.st_size, most)


def _too_large(size: int, most: int) -> DocumentError:
    return DocumentError(f"it has {size:,} bytes; expected at most {most:,}; is it another file?")


def _require_plain(content: Any, *, strict: bool = False) -> None:
    """Raises DocumentError, with the place, for what no reader of a document can do anything with.

    What stands in several places, as YAML's aliases have it, is looked at once. `strict`: numbers
    are finite, text is without NUL, and there are no dates.
    """
    seen: set[int] = set()
    waiting: list[tuple[tuple[Any, ...], int, Any]] = [((), 0, content)]
    while waiting:
        place, depth, value = waiting.pop()
        if not isinstance(value, dict | list):
            if problem := _problem(value, strict=strict):
                raise DocumentError(f"{_key(place)}{problem}".lstrip(": "))
        elif id(value) not in seen:
            seen.add(id(value))
            if depth == DEPTH:
                raise DocumentError(f"lists or tables in one another, {DEPTH} deep; expected fewer")
            inside: Iterable[tuple[Any, Any]] = (
                value.items() if isinstance(value, dict) else enumerate(value)
            )
            for key, each in inside:
                if isinstance(key, int) and (problem := _problem(key, strict=strict)):
                    raise DocumentError(f"{_key(place)}: a key{problem}".lstrip(": "))
                waiting.append(((place, key), depth + 1, each))


def _problem(value: Any, *, strict: bool) -> str | None:
    """What is wrong with a value that is no list and no table."""
    if isinstance(value, int):
        return None if value in WHOLE else ": a whole number of more than 64 bits; correct it"
    if isinstance(value, float):
        return (
            None if math.isfinite(value) or not strict else f" = {value}; expected a finite number"
        )
    if isinstance(value, str):
        return f" = {shown(value)}; it holds a NUL; remove it" if strict and "\0" in value else None
    return f" = {shown(value)}; expected text, a number or true or false" if strict else None


def _key(place: tuple[Any, ...]) -> str:
    """A place as a study file names it: model.lora.0.file."""
    parts: list[str] = []
    while place:
        place, key = place
        parts.append(shown(key)[1:-1] if isinstance(key, str) else str(key))
    return ".".join(reversed(parts))
