"""A study file: TOML in, one frozen and validated `Study` out, and its fingerprint.

Every problem of a file is reported at once, each with its key. Relative paths in a study file are
relative to the file. The fingerprint names all that a score depends on; a study is resumed only
under the same one.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qsched import catalog, jaq
from qsched.coefficients import (
    Bounds,
    Parametrisation,
    parametrisation,
)
from qsched.errors import ConfigError, QschedError
from qsched.prompts import Prompt, choose, read_captions, with_seeds
from qsched.sections import Prompts, Sampling, StudyFile, in_words

LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "optuna", "numpy")
"""Packages whose version can change a score or a proposal."""


@dataclass(frozen=True)
class Study:
    """A validated study: the file's tables with every default and prompt filled in.

    Complete by itself: it is stored in the database as JSON, so a worker needs no file.
    """

    tables: StudyFile
    calibration: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    weights: str

    @property
    def name(self) -> str:
        """The study's name, unique in its database."""
        return self.tables.name

    @property
    def trials(self) -> int:
        """The budget: finished trials, the identity's among them."""
        return self.tables.search.trials

    @cached_property
    def parametrisation(self) -> Parametrisation:
        """The map between a search vector and coefficients."""
        return parametrisation(self.tables.search.parametrisation, self.tables.sampling.steps)

    @cached_property
    def bounds(self) -> Bounds:
        """The box that is searched, the same in every dimension."""
        return Bounds(*self.tables.search.bounds)

    @cached_property
    def objective(self) -> jaq.Objective:
        """JAQ as this study defines it; standardised ones still lack their units."""
        table = self.tables.objective
        terms = tuple(jaq.Term(term.scorer, term.weight) for term in table.terms)
        return jaq.Objective(terms, standardised=table.preset == "standardised")

    @property
    def scorers(self) -> tuple[str, ...]:
        """The scorers that a trial needs."""
        return tuple(term.scorer for term in self.tables.objective.terms)

    def changed(self, *, name: str | None = None, trials: int | None = None) -> "Study":
        """The same study under another name or with another budget. Raises ConfigError."""
        changes: dict[str, Any] = {}
        if name is not None:
            changes["name"] = name
        if trials is not None:
            changes["search"] = self.tables.search.model_dump() | {"trials": trials}
        return _checked(self, changes) if changes else self

    def fingerprint(self) -> dict[str, Any]:
        """All that a value of this study depends on, flat: {"sampling.steps": 4, ...}.

        Budget, name, batch size, device and gallery are not in it: they change no score.
        """
        left_out = {"name", "prompts", "execution", "gallery"}
        tables = self.tables.model_dump(mode="json", exclude=left_out)
        tables["search"].pop("trials")
        keys = dict(_flat(tables))
        keys["model.weights"] = self.weights
        keys["prompts.calibration"] = _digest(self.calibration)
        keys["prompts.held_out"] = _digest(self.held_out)
        return keys | {f"versions.{name}": installed_version(name) for name in LIBRARIES}

    def to_json(self) -> str:
        """The whole study as JSON; `from_json` reads it back equal."""
        return json.dumps(
            {
                "tables": self.tables.model_dump(mode="json"),
                "calibration": [[prompt.text, prompt.seed] for prompt in self.calibration],
                "held_out": [[prompt.text, prompt.seed] for prompt in self.held_out],
                "weights": self.weights,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Study":
        """The study that `to_json` wrote."""
        stored = json.loads(text)
        return cls(
            tables=StudyFile.model_validate(stored["tables"]),
            calibration=tuple(Prompt(*pair) for pair in stored["calibration"]),
            held_out=tuple(Prompt(*pair) for pair in stored["held_out"]),
            weights=stored["weights"],
        )


def load_study(path: str | Path) -> Study:
    """Reads and validates a study file.

    Raises ConfigError that lists every problem, one a line, each beginning with the path and key.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected a study file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    problems: list[str] = []
    prompts: tuple[tuple[Prompt, ...], tuple[Prompt, ...]] = ((), ())
    tables = None
    try:
        tables = StudyFile.model_validate(content)
        entry = catalog.model_entry(tables.model.name)
        tables = _with_defaults(tables, entry)
    except ValidationError as error:
        problems += [in_words(dict(problem)) for problem in error.errors()]
    except QschedError as error:
        problems.append(str(error))
    try:
        prompts = _prompts(Prompts.model_validate(content.get("prompts")), path.parent)
    except ValidationError:
        pass  # already among the problems of the whole file
    except QschedError as error:
        problems.append(str(error))
    if tables is None or problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    calibration, held_out = prompts
    return Study(
        tables=tables,
        calibration=calibration,
        held_out=held_out,
        weights=catalog.weights_identity(entry),
    )


def sampling_of(entry: catalog.ModelEntry, sampling: Sampling) -> Sampling:
    """`sampling` with what it leaves out filled in from the model's entry.

    Raises ConfigError if the model wasn't trained for this number of steps.
    """
    steps = sampling.steps
    if entry.steps and steps not in entry.steps:
        allowed = ", ".join(map(str, entry.steps))
        raise ConfigError(f"sampling.steps = {steps}; {entry.name} was trained for {allowed} steps")
    return sampling.model_copy(
        update={
            "guidance_scale": _first(sampling.guidance_scale, entry.guidance_scale),
            "height": _first(sampling.height, entry.height),
            "width": _first(sampling.width, entry.width),
            "call": {**entry.call, **sampling.call},
        }
    )


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str]:
    """{key in which two fingerprints differ: both values in words}."""
    return {
        key: f"{key}: the study has {stored.get(key)!r}, now it is {current.get(key)!r}"
        for key in sorted(stored.keys() | current.keys())
        if stored.get(key) != current.get(key)
    }


def installed_version(package: str) -> str | None:
    """The installed version of a package, None where it is missing; nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _prompts(table: Prompts, folder: Path) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    def captions(source: str | Sequence[str], count: int | None, key: str) -> list[str]:
        listed = read_captions(folder / source) if isinstance(source, str) else list(source)
        return choose(listed, count, seed=table.seed, where=f"prompts.{key}")

    calibration = captions(table.calibration, table.calibration_count, "calibration")
    held_out = captions(table.held_out, table.held_out_count, "held_out")
    shared = sorted(set(calibration) & set(held_out))
    if shared:
        raise ConfigError(
            f"prompts.held_out: {len(shared)} captions are calibration prompts too, among them "
            f"{shared[0]!r}; a proof needs prompts that the search never saw"
        )
    for key, listed in (("calibration", calibration), ("held_out", held_out)):
        if len(listed) < 2:
            raise ConfigError(f"prompts.{key}: {len(listed)} caption; expected at least 2")
    return (
        with_seeds(calibration, seed=table.seed, split="calibration"),
        with_seeds(
            held_out, seed=table.seed, split="held_out", seeds_per_prompt=table.held_out_seeds
        ),
    )


def _with_defaults(tables: StudyFile, entry: catalog.ModelEntry) -> StudyFile:
    """The tables with what the file left out filled in from the model's entry."""
    part = _first(tables.model.part, entry.part)
    return tables.model_copy(
        update={
            "sampling": sampling_of(entry, tables.sampling),
            "model": tables.model.model_copy(update={"part": part}),
        }
    )


def _checked(study: Study, changes: Mapping[str, Any]) -> Study:
    """`study` with some tables replaced, validated again as a file would be."""
    try:
        tables = StudyFile.model_validate(study.tables.model_dump() | dict(changes))
    except ValidationError as error:
        raise ConfigError("\n".join(in_words(dict(entry)) for entry in error.errors())) from error
    return replace(study, tables=tables)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _digest(prompts: Iterable[Prompt]) -> str:
    listed = json.dumps([[prompt.text, prompt.seed] for prompt in prompts])
    return hashlib.blake2b(listed.encode(), digest_size=8).hexdigest()


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
