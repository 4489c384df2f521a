"""Files of captions: text, JSON lines, JSON, YAML; the layouts that data sets come in."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qsched.errors import PromptError, first_line

KEYS = ("prompt", "caption", "text")
"""Where an object of a JSON or YAML file may have its caption."""


_EXPECTED = f"a caption, or an object with {', '.join(KEYS[:-1])} or {KEYS[-1]}"


def read_captions(path: Path) -> list[str]:
    """The captions of a file, by its suffix and structure; all are read as UTF-8.

    - `.txt` or none: one a line; empty lines and ``#`` comments are skipped.
    - `.jsonl`: one JSON value a line, a caption or an object with prompt, caption or text.
    - `.json`, `.yaml`, `.yml`: a list of such values, or a mapping from an image's name to one
      (sDCI, MJHQ-30K).
    - `.json` with "images": COCO-Karpathy, the first sentence of every image outside split "train",
      which are the images of COCO's val2014; of all images where there is no other split.

    White space around a caption is removed, and a line break in it becomes a space. Where images
    and not captions are listed once (mappings and COCO), a caption that comes again or is empty is
    left out. Raises PromptError, with file and place, if the file is missing or broken, or if there
    is no caption in it.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise PromptError(
            f"{path}: {path.suffix} is not a format of captions; expected "
            f"{', '.join(filter(None, _READERS))}"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PromptError(f"{path}: {error.strerror}; expected a file of captions") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: it is not UTF-8 text; save it as UTF-8") from error
    try:
        captions = read(text)
    except PromptError as error:
        raise PromptError(f"{path}: {error}") from error
    if not captions:
        raise PromptError(f"{path}: no caption in it; expected at least one")
    return captions


def _text(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    return [_caption(line, "") for line in lines if line and not line.startswith("#")]


def _jsonl(text: str) -> list[str]:
    captions = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"line {number}"
            captions.append(_full(_caption(_parsed_json(line, place), place), place))
    return captions


def _json(text: str) -> list[str]:
    content = _parsed_json(text)
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        return _of_images(_coco(content["images"]))
    return _structured(content)


def _yaml(text: str) -> list[str]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the compiled one is ten times as fast
    try:
        content = yaml.load(text, loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise PromptError(f"{line}not valid YAML: {error.problem}; correct it") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PromptError(f"not valid YAML: {first_line(error)}; correct it") from error
    return _structured(content)


_READERS = {
    ".txt": _text,
    "": _text,
    ".jsonl": _jsonl,
    ".json": _json,
    ".yaml": _yaml,
    ".yml": _yaml,
}


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
        f"{_shown(content)} is all there is; expected a list of captions, or a mapping from names "
        "to captions"
    )


def _coco(images: list[Any]) -> Iterable[str]:
    """The first sentence of each image outside the training split."""
    splits = {image.get("split") for image in images if isinstance(image, dict)}
    left_out = "train" if splits - {"train"} else None
    for number, image in enumerate(images):
        place = f"images[{number}]"
        try:
            if image.get("split") == left_out is not None:
                continue
            first = image["sentences"][0]["raw"]
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise PromptError(
                f'{place}: {_shown(image)}; expected {{"sentences": [{{"raw": a caption}}, ...]}}'
            ) from error
        yield _caption(first, f"{place}.sentences[0].raw")


def _of_images(captions: Iterable[str]) -> list[str]:
    """Each caption once, in order, and no empty one: of the images that share it, the first."""
    return [caption for caption in dict.fromkeys(captions) if caption]


def _caption(value: Any, place: str) -> str:
    """A value of a file as a caption on one line, maybe empty."""
    at = f"{place}: " if place else ""
    if isinstance(value, Mapping):
        named = [value[key] for key in KEYS if key in value]
        if not named:
            raise PromptError(f"{at}{_shown(value)}; expected {_EXPECTED}")
        value = named[0]
    if not isinstance(value, str):
        raise PromptError(f"{at}{_shown(value)}; expected {_EXPECTED}; quote it if it is one")
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value):
        raise PromptError(f"{at}{_shown(value)}; it holds a character that is no text; remove it")
    return " ".join(line for line in map(str.strip, value.splitlines()) if line)


def _full(caption: str, place: str) -> str:
    if not caption:
        raise PromptError(f"{place}: an empty caption; write one or remove it")
    return caption


def _parsed_json(text: str, place: str = "") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = place or f"line {error.lineno}"
        raise PromptError(
            f"{place}: not valid JSON: {error.msg} at column {error.colno}; correct it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise PromptError(f"not valid JSON: {first_line(error)}; correct it") from error


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
