"""Prompts with their seeds: what is generated, identical in every trial.

A prompt is a caption and the seed of its own random generator. The initial latents and the noise
that a stochastic scheduler injects come from that generator alone, so two trials differ by their
coefficients and nothing else (common random numbers).
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from qsched import hub
from qsched.captions import check_reader
from qsched.errors import DocumentError, HubError, PromptError
from qsched.files.documents import located, shown
from qsched.seeds import stable_seed
from qsched.tables import Section, Seed, accepted_by

MOST = 100_000
"""Captions of a study at the most; each is scored in every trial."""

_REMOTE = re.compile(
    r"hf://(?P<dataset>datasets/)?(?!(datasets|spaces)/)(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?"
    r"/(?P<file>[^@]+)(@(?P<last>[^@]+))?"
)


@dataclass(frozen=True, order=True)
class Prompt:
    """A caption and the seed (0 to 2**63 - 1) of its noise."""

    text: str
    seed: int


class Prompts(Section):
    """`[prompts]`: captions in files or lists, and the seed of all noise.

    Without `held_out` the file of `calibration` is split, by a seeded order. `reader`: of the
    files, where their suffix doesn't tell; "module:Class" for one of one's own.
    """

    calibration: str | tuple[str, ...]
    held_out: str | tuple[str, ...] | None = None
    calibration_count: int | None = Field(default=None, ge=2, le=MOST)
    held_out_count: int | None = Field(default=None, ge=2, le=MOST)
    held_out_seeds: int = Field(default=2, ge=1, le=64)
    seed: Seed = 0
    reader: Annotated[str, accepted_by(check_reader)] | None = None


def is_remote(source: str) -> bool:
    """Whether a source of captions lies on the Hugging Face hub."""
    return source.startswith("hf://")


def locate(source: str, folder: Path, *, where: str) -> Path:
    """The local path of a source of captions; what lies on the hub is fetched into its cache.

    `source`: a path relative to `folder`, or ``hf://datasets/OWNER/NAME/PATH@REVISION`` (without
    ``datasets/`` for the files of a model; the revision may be left out, or stand behind NAME).
    `where`: the key of the study file. What was fetched once needs no network. Raises PromptError,
    in one line, if a file on the hub can't be had, or for what can be no path; whether a local file
    is there isn't looked at.
    """
    if not is_remote(source):
        try:
            return located(source, folder)
        except DocumentError as error:
            raise PromptError(f"{where} = {shown(source)}; {error}") from error
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
