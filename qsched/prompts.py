"""Prompts with their seeds: what is generated, identical in every trial.

A prompt is a caption and the seed of its own random generator. The initial latents and the noise
that a stochastic scheduler injects come from that generator alone, so two trials differ by their
coefficients and nothing else (common random numbers).
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qsched.errors import PromptError


@dataclass(frozen=True, order=True)
class Prompt:
    """A caption and the seed (0 to 2**63 - 1) of its noise."""

    text: str
    seed: int


def read_captions(path: Path) -> list[str]:
    """The captions of a UTF-8 text file, one a line; empty lines and ``#`` comments are skipped.

    Raises PromptError if the file is missing, unreadable or holds no caption.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise PromptError(
            f"{path}: {reason}; expected a text file with one caption a line"
        ) from error
    captions = [line.strip() for line in lines]
    captions = [line for line in captions if line and not line.startswith("#")]
    if not captions:
        raise PromptError(f"{path}: no caption in it; expected one a line")
    return captions


def choose(captions: Sequence[str], count: int | None, *, seed: int, where: str) -> list[str]:
    """`count` distinct captions in an order that depends on `seed` and each caption alone.

    Adding or reordering captions in the file therefore moves none of the others' ranks. None takes
    all, in the order given. Raises PromptError for duplicates and for too few captions.
    """
    seen: set[str] = set()
    for caption in captions:
        if caption in seen:
            raise PromptError(f"{where}: the caption {caption!r} stands there twice; remove one")
        seen.add(caption)
    if count is None:
        return list(captions)
    if len(captions) < count:
        raise PromptError(f"{where}: {len(captions)} captions; the study asks for {count}")
    return sorted(captions, key=lambda caption: stable_seed("choose", seed, caption))[:count]


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
