"""Prompts with their seeds: what is generated, identical in every trial.

A prompt is a caption and the seed of its own random generator. The initial latents and the noise
that a stochastic scheduler injects come from that generator alone, so two trials differ by their
coefficients and nothing else (common random numbers).
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsched import hub
from qsched.errors import HubError, PromptError

KEYS = ("prompt", "caption", "text")
"""Where an object of a JSON or YAML file may have its caption."""

_EXPECTED = f"a caption, or an object with {', '.join(KEYS[:-1])} or {KEYS[-1]}"

_REMOTE = re.compile(
    r"hf://(?P<dataset>datasets/)?(?!(datasets|spaces)/)(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?"
    r"/(?P<file>[^@]+)(@(?P<last>[^@]+))?"
)


@dataclass(frozen=True, order=True)
class Prompt:
    """A caption and the seed (0 to 2**63 - 1) of its noise."""

    text: str
    seed: int


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


def is_remote(source: str) -> bool:
    """Whether a source of captions lies on the Hugging Face hub."""
    return source.startswith("hf://")


def locate(source: str, folder: Path, *, where: str) -> Path:
    """The local path of a source of captions; what lies on the hub is fetched into its cache.

    `source`: a path relative to `folder`, or ``hf://datasets/OWNER/NAME/PATH@REVISION`` (without
    ``datasets/`` for the files of a model; the revision may be left out, or stand behind NAME).
    `where`: the key of the study file. What was fetched once needs no network. Raises PromptError,
    in one line, if a file on the hub can't be had; a local path is not looked at.
    """
    if not is_remote(source):
        return folder / Path(source).expanduser()
    found = _REMOTE.fullmatch(source)
    if found is None or (found["revision"] and found["last"]):
        raise PromptError(
            f"{where} = {source!r}; expected hf://datasets/OWNER/NAME/PATH, maybe with @REVISION"
        )
    try:
        return hub.fetch_file(
            found["repository"],
            found["file"],
            revision=found["revision"] or found["last"],
            dataset=bool(found["dataset"]),
        )
    except HubError as error:
        raise PromptError(f"{where}: {error}") from error


def choose(captions: Sequence[str], count: int | None, *, seed: int, where: str) -> list[str]:
    """`count` distinct captions in an order that depends on `seed` and each caption alone.

    Adding or reordering captions in the file therefore moves none of the others' ranks. None takes
    all, in the order given. Raises PromptError for duplicates, for empty and for too few captions.
    """
    seen: set[str] = set()
    for number, caption in enumerate(captions, start=1):
        if not caption.strip():
            raise PromptError(f"{where}: caption {number} is empty; write one or remove it")
        if caption in seen:
            raise PromptError(f"{where}: the caption {caption!r} stands there twice; remove one")
        seen.add(caption)
    if count is None:
        return list(captions)
    if len(captions) < count:
        raise PromptError(f"{where}: {len(captions)} captions; the study asks for {count}")
    return sorted(captions, key=lambda caption: stable_seed("choose", seed, caption))[:count]


def split(
    captions: Sequence[str],
    calibration: int | None,
    held_out: int | None,
    *,
    seed: int,
    where: str,
) -> tuple[list[str], list[str]]:
    """One list for both: the first `calibration` captions and the next `held_out`, in rank order.

    Ranked as by `choose`; None for `held_out` takes all that is left. The two never overlap. Raises
    PromptError for duplicates, for too few captions, and if nothing says where to cut.
    """
    if calibration is None:
        raise PromptError(
            f"{where}: the same captions calibrate and are held out; set prompts.calibration_count"
        )
    ranked = choose(captions, len(captions), seed=seed, where=where)
    if len(ranked) < calibration + (held_out or 0):
        raise PromptError(
            f"{where}: {len(ranked)} captions; the study asks for {calibration} to calibrate and "
            f"{held_out or 'some'} held out"
        )
    end = None if held_out is None else calibration + held_out
    return ranked[:calibration], ranked[calibration:end]


def stand_ins(count: int, split: str) -> list[str]:
    """`count` distinct short captions of common words, always the same ones for a split.

    For checks and twins, which must not download anything. No caption of "calibration" is one of
    another split.
    """
    opening = "a photo of" if split == "calibration" else "a painting of"
    # The lengths of the lists have no common factor, so captions differ until `most`.
    most = math.prod(map(len, _WORDS))
    captions = []
    for index in range(count):
        words = [listed[index % len(listed)] for listed in _WORDS]
        version = f", version {index // most + 1}" if index >= most else ""
        captions.append(" ".join([opening, *words]) + version)
    return captions


def with_seeds(
    captions: Iterable[str], *, seed: int, split: str, seeds_per_prompt: int = 1
) -> tuple[Prompt, ...]:
    """Each caption with `seeds_per_prompt` seeds of its own, the seeds of one caption adjacent.

    Seeds are derived from (`seed`, `split`, caption, repetition), so calibration and held-out
    prompts never share noise, and a caption keeps its noise when the list around it changes.
    """
    return tuple(
        Prompt(caption, stable_seed(split, seed, caption, repetition))
        for caption in captions
        for repetition in range(seeds_per_prompt)
    )


def stable_seed(*parts: object) -> int:
    """A seed in [0, 2**63) that depends on `parts` alone, on every machine and Python."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


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
        raise PromptError(f"not valid YAML: {_first_line(error)}; correct it") from error
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
        raise PromptError(f"not valid JSON: {_first_line(error)}; correct it") from error


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


_WORDS = [
    line.split("|")
    for line in (
        "a red|a blue|a green|a yellow|a white|a black|a small|a large|a wooden|a shiny|a striped",
        "apple|bicycle|boat|book|bottle|bus|cat|chair|clock|cow|cup|dog|door|flower|guitar|hat|"
        "horse|kite|lamp|shoe|teapot|train|umbrella",
        "on a table|in a garden|on a beach|in a kitchen|near a river|in a field|on a street|"
        "by a window|on a hill|in a forest|under a tree|on a bridge|in a market|beside a wall|"
        "on a lawn|in a park|near a castle|on a carpet|in a desert",
        "at dawn|at noon|at sunset|at night|in the rain|in the snow|in the fog",
    )
]
