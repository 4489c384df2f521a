"""A study file: TOML in, one frozen and validated `Study` out, and its fingerprint.

Every problem of a file is reported at once, each with its key. Relative paths in a study file are
relative to the file. The fingerprint names all that a score depends on; a study is resumed only
under the same one.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from qsched.captions import read_captions
from qsched.digests import first_and_last
from qsched.errors import ConfigError, DocumentError, QschedError, Unreadable, one_line
from qsched.evidence.table import with_reference
from qsched.files.documents import from_toml, read
from qsched.notebooks import table
from qsched.pipelines import catalog
from qsched.pipelines.agreement import settings
from qsched.pipelines.table import placed, sampling_of, weights_of, with_entry
from qsched.plugins import beside
from qsched.prompts import Prompt, Prompts, choose, is_remote, locate, split, stand_ins, with_seeds
from qsched.schedule.parametrisations import Bounds, Parametrisation
from qsched.scoring import jaq
from qsched.search.catalog import BEFORE, resolved
from qsched.search.plan import TRIALS, Plan
from qsched.seeds import digest
from qsched.study.file import StudyFile
from qsched.study.fingerprint import (
    FORMAT,
    differences,
    modules,
    plugins,
    reader,
    versions,
    weights,
    without_reader,
)
from qsched.tables import STORED, Seed, checked, in_words, unreadable

ARTIFACTS = "QSCHED_ARTIFACTS"
"""The variable that says where pictures lie: a folder, or s3://bucket."""

TWIN_PROMPTS = 4
"""A twin calibrates on no more prompts than this, and is held to no more."""


@dataclass(frozen=True, repr=False)
class Study:
    """A validated study: the file's tables with every default and prompt filled in.

    Complete by itself: it is stored in the database as JSON, so a worker needs no file. `file`: the
    study file at hand, beside which plug-ins are looked for; None for what a database says. Whoever
    writes to that may choose what is computed, but no code: `allowed` are the modules that may be
    imported for a ``module:name``, None any; `allow`: what a person named with `--allow-code`.
    """

    tables: StudyFile
    calibration: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    weights: str
    file: str | None = field(default=None, compare=False)
    allowed: frozenset[str] | None = field(default=None, compare=False)
    allow: frozenset[str] = field(default=frozenset(), compare=False)

    def __repr__(self) -> str:
        """Short: `to_json` has all."""
        tables = self.tables
        return (
            f"<Study {self.name!r}: {tables.model.name} at {tables.quantization.scheme}, "
            f"{tables.sampling.steps} steps, {self.trials} trials, "
            f"{len(self.calibration)} prompts>"
        )

    def _repr_html_(self) -> str:
        tables, (low, high) = self.tables, self.tables.search.bounds
        rows = {
            "model": tables.model.name,
            "quantization": tables.quantization.scheme,
            "steps": f"{tables.sampling.steps}",
            "objective": " + ".join(f"{t.weight:g} x {t.scorer}" for t in self.objective.terms),
            "search": f"{self.trials} trials, {self.parametrisation.name} in [{low:g}, {high:g}]",
            "prompts": f"{len(self.calibration)}, and {len(self.held_out)} images held out",
        }
        return table(f"Study {self.name}", rows.items())

    @property
    def folder(self) -> str | None:
        """The folder of the study file."""
        return str(Path(self.file).parent) if self.file else None

    def code(self) -> AbstractContextManager[None]:
        """While the context lasts, plug-ins are found for this study, and only those allowed."""
        return beside(self.folder, self.allowed, self.allow)

    def allowing(self, names: Collection[str]) -> "Study":
        """The same study, which may run these modules, and the code that these scorers fetch."""
        allowed = None if self.allowed is None else self.allowed | set(names)
        return replace(self, allowed=allowed, allow=self.allow | set(names))

    @property
    def store(self) -> str | None:
        """The place of its pictures: by the environment, else by what is at hand; a place that
        only the database names is not written to. None is the default."""
        given = os.environ.get(ARTIFACTS)
        return given or (self.tables.gallery.store if self.file or self.allowed is None else None)

    @property
    def modules(self) -> frozenset[str]:
        """The modules of one's own that this study names."""
        return modules(self.tables)

    @property
    def name(self) -> str:
        """The study's name, unique in its database."""
        return self.tables.name

    @property
    def trials(self) -> int:
        """The budget: finished trials, the identity's among them."""
        return self.tables.search.trials or TRIALS

    @property
    def plan(self) -> Plan | None:
        """Which prompts its trials score; None where each scores all."""
        return self.tables.search.plan(len(self.calibration))

    @cached_property
    def parametrisation(self) -> Parametrisation:
        """The map between a search vector and coefficients."""
        return self.tables.space

    @cached_property
    def bounds(self) -> Bounds:
        """The box that is searched, the same in every dimension."""
        return Bounds(*self.tables.search.bounds)

    @cached_property
    def objective(self) -> jaq.Objective:
        """JAQ as this study defines it; standardised ones still lack their units."""
        table = self.tables.objective
        terms = tuple(jaq.Term(term.scorer, term.weight, term.log) for term in table.terms)
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

    def with_budget(self, trials: int) -> "Study":
        """The same study with a budget that was valid before."""
        search = self.tables.search.model_copy(update={"trials": trials})
        return replace(self, tables=self.tables.model_copy(update={"search": search}))

    def here(self) -> "Study":
        """The same study with its model's weights as this machine has them; a twin's are the same
        everywhere. Raises ModelError for a file that can't be read."""
        model = self.tables.model
        return self if model.twin else replace(self, weights=weights_of(model))

    def changed_settings(self, before: "Study") -> dict[str, tuple[Any, Any]]:
        """{key: (value in `before`, value here)} of what no score depends on, `[execution]` and
        `[gallery]`."""
        then, now = (
            dict(_flat(study.tables.model_dump(mode="json", include={"execution", "gallery"})))
            for study in (before, self)
        )
        return {key: (then.get(key), now[key]) for key in now if then.get(key) != now[key]}

    def with_tables(self, changes: Mapping[str, Any]) -> "Study":
        """The same study with some tables replaced, checked as a file's are. Raises ConfigError."""
        return _checked(self, changes)

    def twin(self) -> "Study":
        """The same study of a tiny model of the same pipeline class, with random weights.

        Its name ends in "-twin", its images are small and its prompts few; all else is as the study
        says. Raises ConfigError if nothing tells the pipeline's class.
        """
        model, sampling = self.tables.model, self.tables.sampling
        if model.pipeline is None:
            raise ConfigError(
                f"model.name = {model.name!r} has no twin; set model.pipeline to its class"
            )
        side = {"height": catalog.TWIN_SIDE, "width": catalog.TWIN_SIDE}
        changes = {
            "name": f"{self.name[:59]}-twin",
            "model": model.model_dump() | {"twin": True, "dtype": "float32"},
            "sampling": sampling.model_dump() | side,
        }
        if self.plan:  # as many trials, and as many kinds of them, on fewer prompts
            changes["search"] = self.tables.search.model_dump() | {"prompts_per_trial": 1}
        changed = _checked(self, changes)
        return replace(
            changed,
            calibration=self.calibration[:TWIN_PROMPTS],
            held_out=self.held_out[:TWIN_PROMPTS],
            weights=f"twin of {model.pipeline}",
        )

    def fingerprint(self, *, read: bool = True) -> dict[str, Any]:
        """All that a value of this study depends on, flat: {"sampling.steps": 4, ...}.

        Budget, name, batch size, device and gallery are not in it: they change no score. `read`:
        its prompts were read here, so the plug-in that reads them counts too.
        """
        left_out = {"name", "prompts", "execution", "gallery"}
        tables = self.tables.model_dump(mode="json", exclude=left_out)
        for key in ("trials", "images"):
            tables["search"].pop(key)
        if tables["search"]["prompts_per_trial"] is None:  # which 0.1 had not
            tables["search"].pop("prompts_per_trial")
        keys = dict(_flat(tables))
        keys["model.weights"] = self.weights
        keys["prompts.calibration"] = _digest(self.calibration)
        keys["prompts.held_out"] = _digest(self.held_out)
        with self.code():
            code = plugins(self.tables) | versions(self.tables) | weights(self.tables)
            code |= reader(self.tables) if read else {}
        return {"format": FORMAT, **keys, **code}

    def differences(self, stored: Mapping[str, Any], *, read: bool = True) -> dict[str, str]:
        """{key in which a stored fingerprint differs from this study's: both values in words}.

        Version 0.1 read less of large files; weights that agree as far as it read are the same.
        `read`: as in `fingerprint`.
        """
        current, key = self.fingerprint(read=read), "model.weights"
        if not read:
            stored = without_reader(self.tables, stored)
        if stored.get("search.sampler") == "auto":
            meant = resolved("auto", self.tables.space.dimension, BEFORE)
            stored = {**stored, "search.sampler": meant}
        if "format" not in stored and stored.get(key) != current[key]:
            before = weights_of(self.tables.model, first_and_last)
            current[key] = before if stored.get(key) == before else current[key]
        return differences(stored, current)

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
    def from_json(
        cls, text: str, *, file: str | None = None, allowed: Collection[str] = ()
    ) -> "Study":
        """The study that `to_json` wrote, or somebody else who may write to the database. `file`
        and the modules `allowed` are what the reader lets it run. Raises Unreadable, in one line.
        """
        try:
            with beside(None, ()):  # nothing is imported to read it
                stored = _Stored.model_validate_json(text, context=STORED)
        except ValidationError as error:
            raise Unreadable(
                f"its definition can't be read: {unreadable(error)}; restore it from a backup"
            ) from error
        tables = stored.tables
        if tables.search.sampler == "auto":  # 0.1 stored the word
            sampler = resolved("auto", tables.space.dimension, BEFORE)
            search = tables.search.model_copy(update={"sampler": sampler})
            tables = tables.model_copy(update={"search": search})
        return cls(
            tables=tables,
            calibration=tuple(Prompt(*pair) for pair in stored.calibration),
            held_out=tuple(Prompt(*pair) for pair in stored.held_out),
            weights=stored.weights,
            file=file,
            allowed=frozenset(allowed),
        )


def is_file(study: str | Path) -> bool:
    """Whether a study file is meant, and not the name of a study in a database."""
    return Path(study).suffix == ".toml" or Path(study).is_file()


class _Stored(BaseModel):
    """What `Study.to_json` writes. Those of version 0.1 have more."""

    tables: StudyFile
    calibration: tuple[tuple[str, Seed], ...] = Field(min_length=1)
    held_out: tuple[tuple[str, Seed], ...] = Field(min_length=1)
    weights: str

    @model_validator(mode="after")
    def _names_are_names(self) -> Self:
        """They become part of the code that a report shows and an export writes."""
        model, sampling = self.tables.model, self.tables.sampling
        names = [name for name in (model.pipeline, model.part) if name is not None]
        names += [*sampling.call, *(sampling.none or ()), *(model.scheduler or {})]
        names += [str(model.scheduler["class"])] if model.scheduler else []
        for name in names:
            if not name.isidentifier():
                raise ValueError(f"tables: {name[:100]!r} is no name of Python's")
        return self


def load_study(source: str | Path | Mapping[str, Any], *, fetch: bool = True) -> Study:
    """Reads and validates a study file, or the same tables as a dict, whose relative paths are
    relative to the current folder, and whose plug-ins have to be importable.

    `fetch`: prompts that lie on the hub are downloaded; otherwise stand-ins take their place, for a
    check or a twin, neither of which may need the network. Raises ConfigError that lists every
    problem, one a line, each beginning with the path and key.
    """
    if isinstance(source, Mapping):
        return _read(_plain(source), "study", Path(), fetch)
    path = Path(source)
    try:
        content = from_toml(read(path))
    except DocumentError as error:
        raise ConfigError(one_line(f"{path}: {error}")) from error
    with beside(path.parent):
        study = _read(content, str(path), path.parent, fetch)
    return replace(study, file=str(path.resolve()))


def _plain(content: Any) -> Any:
    """A dict as a file has it: paths are strings."""
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return str(content) if isinstance(content, PurePath) else content


def _read(content: Mapping[str, Any], name: str, folder: Path, fetch: bool) -> Study:
    """The study of a file's content, by what a person calls it. Raises ConfigError with every
    problem."""
    problems: list[str] = []
    prompts: tuple[tuple[Prompt, ...], tuple[Prompt, ...]] = ((), ())
    tables = None
    try:
        tables = _with_defaults(StudyFile.model_validate(content), folder)
        problems += settings.problems(tables.model, tables.sampling)
        problems += settings.problems_of_space(tables.model, tables.space)
    except ValidationError as error:
        problems += [in_words(dict(problem), StudyFile) for problem in error.errors()]
    except QschedError as error:
        problems.append(str(error))
    try:
        prompts = _prompts(Prompts.model_validate(content.get("prompts")), folder, fetch)
    except ValidationError:
        pass  # already among the problems of the whole file
    except QschedError as error:
        problems.append(str(error))
    calibration, held_out = prompts
    if tables is not None and calibration:
        try:
            tables = _settled(tables, len(calibration))
        except QschedError as error:
            problems.append(str(error))
    if tables is None or problems:
        raise ConfigError("\n".join(one_line(f"{name}: {problem}") for problem in problems))
    return Study(
        tables=tables,
        calibration=calibration,
        held_out=held_out,
        weights=weights_of(tables.model),
    )


def _prompts(
    table: Prompts, folder: Path, fetch: bool
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    calibration, held_out = _captions(table, folder, fetch)
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


def _captions(table: Prompts, folder: Path, fetch: bool) -> tuple[list[str], list[str]]:
    """The captions to calibrate on, and those held out."""

    def listed(source: str | Sequence[str], count: int | None, key: str) -> list[str]:
        if not isinstance(source, str):
            return list(source)
        if is_remote(source) and not fetch:
            if count is None:
                raise ConfigError(f"prompts.{key}_count is missing; prompts on the hub need it")
            return stand_ins(count, key)
        return read_captions(locate(source, folder, where=f"prompts.{key}"), table.reader)

    if table.held_out is None and not (
        isinstance(table.calibration, str) and is_remote(table.calibration) and not fetch
    ):
        return split(
            listed(table.calibration, None, "calibration"),
            table.calibration_count,
            table.held_out_count,
            seed=table.seed,
            where="prompts.calibration",
        )
    both = (
        (table.calibration, table.calibration_count, "calibration"),
        (
            table.held_out or table.calibration,
            table.held_out_count,
            "held_out",
        ),
    )
    calibration, held_out = (
        choose(listed(source, count, key), count, seed=table.seed, where=f"prompts.{key}")
        for source, count, key in both
    )
    return calibration, held_out


def _with_defaults(tables: StudyFile, folder: Path) -> StudyFile:
    """The tables with what the file left out filled in from the model's entry."""
    model = with_entry(placed(tables.model, folder), tables.sampling.steps)
    sampling = sampling_of(tables.model.name, tables.sampling)
    validation = with_reference(tables.validation, folder)
    tables = tables.model_copy(
        update={"sampling": sampling, "model": model, "validation": validation}
    )
    search = tables.search.model_copy(update={"parametrisation": tables.space.name})
    return tables.model_copy(update={"search": search})


def _settled(tables: StudyFile, pool: int) -> StudyFile:
    """The tables with the sampler and the budget as they are for so many prompts."""
    space = tables.space
    search = tables.search.settled(space.dimension, space.dimension - len(space.pinned), pool)
    return tables.model_copy(update={"search": search})


def _checked(study: Study, changes: Mapping[str, Any]) -> Study:
    """`study` with some tables replaced, validated again as a file would be."""
    with study.code():
        tables = checked(StudyFile, study.tables.model_dump() | dict(changes))
    return replace(study, tables=tables)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _digest(prompts: Iterable[Prompt]) -> str:
    return digest(json.dumps([[prompt.text, prompt.seed] for prompt in prompts]))
