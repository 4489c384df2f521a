"""Files of captions: text, JSON lines, JSON, YAML, CSV, TSV; the layouts of data sets."""

import csv
import inspect
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from qsched.errors import DocumentError, PromptError, in_one_line, one_line
from qsched.files.documents import MEBIBYTE, from_json, from_yaml, read, shown
from qsched.plugins import Registry

MOST = 1024 * MEBIBYTE
"""Bytes of a file of captions; COCO's largest has 250 MB."""

KEYS = ("prompt", "caption", "text")
"""Where an object or a table may have its caption: in any case, as one or as many (Prompts)."""

_BREAK = re.compile(r"\r\n|\n|\r")
"""What ends a line; U+2028, a form feed and the like are characters of a caption."""

_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
"""A whole field of a TSV file as spreadsheets quote it."""

_EXPECTED = f"a caption, or an object with {', '.join(KEYS[:-1])} or {KEYS[-1]}"


class Reader(Protocol):
    """Reads captions from a file: what a plug-in provides, and what every built-in reader is.

    `suffixes`: of the files that it reads unless a study names another reader; in small letters and
    with their dots, "" for files without one.
    """

    suffixes: tuple[str, ...]

    def read(self, path: Path) -> Sequence[str]:
        """The captions, one an image, in the order of the file.

        What it raises is said in one line with the file; PromptError where the remedy is known.
        """


def read_captions(path: Path, reader: str | None = None) -> list[str]:
    """The captions of a file by a reader's name, else by the file's suffix and structure.

    - `.txt` or none: one a line; empty lines and ``#`` comments are skipped.
    - `.jsonl`: one JSON value a line, a caption or an object with prompt, caption or text.
    - `.json`, `.yaml`, `.yml`: a list of such values, or a mapping from an image's name to one
      (sDCI, MJHQ-30K).
    - `.json` with "images": COCO-Karpathy, the first sentence of every image outside split "train",
      which are the images of COCO's val2014; of all images where there is no other split.
    - `.json` with "annotations": COCO's own captions_val2017.json, the first caption of every image
      in the order of its "images".
    - `.csv`, `.tsv`: a header with prompt, caption or text, and a caption a row (DrawBench, Parti).

    All are read as UTF-8; lines end at \\n, \\r\\n or \\r only. Names such as prompt count in any
    case, and with an s. White space around a caption is removed, and a line break in it becomes a
    space. Where images and not captions are listed once (mappings and COCO), a caption that comes
    again or is empty is left out. Raises PromptError, with file and place, if the file is missing
    or broken, or if there is no caption in it.
    """
    chosen = _reader(reader) if reader else _reader_of(path)
    try:
        found = list(chosen.read(path))
        captions = [_full(_caption(each, place), place) for place, each in _numbered(found)]
    except (PromptError, DocumentError) as error:
        raise PromptError(one_line(f"{path}: {error}")) from error
    except Exception as error:
        raise PromptError(
            f"{path}: {reader or 'its reader'} fails: {in_one_line(error)}"
        ) from error
    if not captions:
        raise PromptError(f"{path}: no caption in it; expected at least one")
    return captions


def check_reader(name: str) -> None:
    """Raises PromptError for a name that is no reader's."""
    _reader(name)


def _reader(name: str) -> Reader:
    found: Any = READERS.find(name).value
    missing = [each for each in ("suffixes", "read") if not hasattr(found, each)]
    if missing:
        raise PromptError(
            f"prompt reader {name!r} has no {' and no '.join(missing)}; expected a class with "
            "suffixes and read(path)"
        )
    made: Any = found() if inspect.isclass(found) else found
    reader: Reader = made
    return reader


def _reader_of(path: Path) -> Reader:
    """The reader of a file by its suffix: a built-in one, else an installed package's."""
    suffix = path.suffix.lower()
    known: list[str] = []
    for name in READERS.names():
        reader = _reader(name)
        if suffix in reader.suffixes:
            return reader
        known += reader.suffixes
    raise PromptError(
        f"{path}: {path.suffix} is not a format of captions; expected "
        f"{', '.join(filter(None, known))}, or set prompts.reader to one of your own"
    )


def _numbered(values: Sequence[Any]) -> Iterable[tuple[str, Any]]:
    return ((f"caption {number}", value) for number, value in enumerate(values, start=1))


class Text:
    """A caption a line; empty lines and comments are skipped."""

    suffixes = (".txt", "")

    def read(self, path: Path) -> list[str]:
        """As `Reader` says."""
        lines = [line.strip() for line in _decoded(path).split("\n")]
        return [_caption(line, "") for line in lines if line and not line.startswith("#")]


class JsonLines:
    """A JSON value a line."""

    suffixes = (".jsonl",)

    def read(self, path: Path) -> list[str]:
        """As `Reader` says."""
        captions = []
        for number, line in enumerate(_decoded(path).split("\n"), start=1):
            if line.strip():
                place = f"line {number}"
                captions.append(_full(_caption(from_json(line, line=number), place), place))
        return captions


class Json:
    """A list, a mapping from images' names, COCO-Karpathy or COCO's own annotations."""

    suffixes = (".json",)

    def read(self, path: Path) -> list[str]:
        """As `Reader` says."""
        content = from_json(_decoded(path))
        if isinstance(content, dict) and isinstance(content.get("annotations"), list):
            return _of_images(_annotated(content.get("images"), content["annotations"]))
        if isinstance(content, dict) and isinstance(content.get("images"), list):
            return _of_images(_coco(content["images"]))
        return _structured(content)


class Yaml:
    """A list, or a mapping from images' names."""

    suffixes = (".yaml", ".yml")

    def read(self, path: Path) -> list[str]:
        """As `Reader` says."""
        text = _decoded(path)
        # YAML 1.1 ends lines at these; other characters, which the file lacks, stand for them.
        spare = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
        apart = dict(zip("\x85\u2028\u2029", spare, strict=False))
        there = {ord(own): other for own, other in apart.items()}
        back = {ord(other): own for own, other in apart.items()}
        captions = _structured(from_yaml(text.translate(there)))
        return [caption.translate(back).strip() for caption in captions]


class Csv:
    """A row a caption, in the column that the header names."""

    suffixes = (".csv",)

    def read(self, path: Path) -> list[str]:
        """As `Reader` says."""
        rows = csv.reader(io.StringIO(_decoded(path)), strict=True)
        try:
            return _column((f"line {rows.line_num}", row) for row in rows)
        except csv.Error as error:
            raise PromptError(
                f"line {rows.line_num}: not valid CSV: {error}; correct it"
            ) from error


class Tsv:
    """As CSV with tabs; a quotation mark counts only around a whole field."""

    suffixes = (".tsv",)

    def read(self, path: Path) -> list[str]:
        """As `Reader` says."""
        lines = enumerate(_decoded(path).split("\n"), start=1)
        fields = ((number, line.split("\t") if line.strip() else []) for number, line in lines)
        return _column(
            (f"line {number}", [_unquoted(field) for field in row]) for number, row in fields
        )


READERS = Registry(
    "prompt reader",
    "qsched.prompt_readers",
    {
        "text": f"{__name__}:Text",
        "jsonl": f"{__name__}:JsonLines",
        "json": f"{__name__}:Json",
        "yaml": f"{__name__}:Yaml",
        "csv": f"{__name__}:Csv",
        "tsv": f"{__name__}:Tsv",
    },
    PromptError,
)
"""Every reader of captions; `[prompts] reader` names one."""


def _decoded(path: Path) -> str:
    return read(path, most=MOST)


def _unquoted(field: str) -> str:
    quoted = _QUOTED.fullmatch(field.strip())
    return quoted[1].replace('""', '"') if quoted else field


def _column(rows: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """The captions of a table, whose first row names its columns; rows with their places."""
    header: Sequence[str] = ()
    captions = []
    for place, row in rows:
        if not row:
            continue
        if not header:
            header = row
            if _key_of(header) is None:
                raise PromptError(
                    f"{place}: {shown(list(row))}; expected a header with a column "
                    f"{', '.join(KEYS[:-1])} or {KEYS[-1]}"
                )
            continue
        if len(row) != len(header):
            raise PromptError(
                f"{place}: {len(row)} fields; expected {len(header)} as in the header; quote a "
                "caption with a separator or a line break in it"
            )
        named = dict(zip(header, row, strict=True))
        captions.append(_full(_caption(named, place), place))
    return captions


def _key_of(names: Iterable[Any]) -> Any:
    """Of the names in an object or a header the caption's; None if there is none."""
    listed = list(names)
    for key in KEYS:
        near = [name for name in listed if str(name).strip().lower() in (key, f"{key}s")]
        if near:
            return key if key in near else near[0]
    return None


def _structured(content: Any) -> list[str]:
    """The captions of a list or a mapping from names."""
    if content is None:
        return []
    if isinstance(content, list):
        places = ((value, f"entry {number}") for number, value in enumerate(content, start=1))
        return [_full(_caption(value, place), place) for value, place in places]
    if isinstance(content, dict):
        return _of_images(_caption(value, f"key {key!r}") for key, value in content.items())
    raise PromptError(
        f"{shown(content)} is all there is; expected a list of captions, or a mapping from names "
        "to captions"
    )


def _coco(images: list[Any]) -> Iterable[str]:
    """The first sentence of each image outside the training split."""
    splits = {str(image.get("split")) for image in images if isinstance(image, dict)}
    left_out = "train" if splits - {"train"} else None
    for number, image in enumerate(images):
        place = f"images[{number}]"
        try:
            if image.get("split") == left_out is not None:
                continue
            first = image["sentences"][0]["raw"]
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise PromptError(
                f'{place}: {shown(image)}; expected {{"sentences": [{{"raw": a caption}}, ...]}}'
            ) from error
        yield _caption(first, f"{place}.sentences[0].raw")


def _annotated(images: Any, annotations: list[Any]) -> Iterable[str]:
    """The first caption of each image, in the order of `images`, else of the annotations."""
    first: dict[Any, str] = {}
    for number, each in enumerate(annotations):
        place = f"annotations[{number}]"
        if not (isinstance(each, dict) and "image_id" in each and "caption" in each):
            raise PromptError(
                f'{place}: {shown(each)}; expected {{"image_id": ..., "caption": ...}}, as in '
                "captions_val2017.json"
            )
        caption = _caption(each["caption"], f"{place}.caption")
        if caption:
            first.setdefault(str(each["image_id"]), caption)
    if not isinstance(images, list):
        return first.values()
    listed = [str(each.get("id")) for each in images if isinstance(each, dict)]
    if missing := first.keys() - set(listed):
        raise PromptError(f"annotations: image_id {min(missing)} is not among the images; add it")
    return (first[image] for image in listed if image in first)


def _of_images(captions: Iterable[str]) -> list[str]:
    """Each caption once, in order, and no empty one: of the images that share it, the first."""
    return [caption for caption in dict.fromkeys(captions) if caption]


def _caption(value: Any, place: str) -> str:
    """A value of a file as a caption on one line, maybe empty."""
    at = f"{place}: " if place else ""
    if isinstance(value, Mapping):
        key = _key_of(value)
        if key is None:
            raise PromptError(f"{at}{shown(value)}; expected {_EXPECTED}")
        value = value[key]
    if not isinstance(value, str):
        raise PromptError(f"{at}{shown(value)}; expected {_EXPECTED}; quote it if it is one")
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value):
        raise PromptError(f"{at}{shown(value)}; it holds a character that is no text; remove it")
    return " ".join(line for line in map(str.strip, _BREAK.split(value)) if line)


def _full(caption: str, place: str) -> str:
    if not caption:
        raise PromptError(f"{place}: an empty caption; write one or remove it")
    return caption
