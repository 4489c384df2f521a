"""The outcome of a study: what a validation stores, and all that reports, exports and cards read.

It is a value that knows its JSON. `report.json` has the same keys but the scheduler's config, the
artifact of the pictures, the values of single images and the version of the form, which are stored
with them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, Self, TypeVar

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from qsched.errors import CoefficientsError, StudyError
from qsched.evidence.guards import Guard
from qsched.notebooks import table
from qsched.schedule.coefficients import Coefficients
from qsched.seeds import digest
from qsched.service.status import Candidate, Status
from qsched.service.stored_study import StoredStudy
from qsched.statistics import Interval, Values, paired_interval
from qsched.study.file import is_name
from qsched.study.fingerprint import versions
from qsched.study.study import Study
from qsched.tables import unreadable

T = TypeVar("T")

FINITE = ConfigDict(allow_inf_nan=False)
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", max_length=2000)]
"""Text of one line, without control characters."""

VERSION = 1
"""Of the stored form. qsched 0.1 wrote the same one without a number."""

JAQ = "jaq"
SAME_COEFFICIENTS = "the same coefficients"
OWN_SEARCH = "its own search"
"""What full precision was given, whose gain is taken off for the repair."""

GRID = 50 * 50
"""Points of the official search, a grid, for the comparison of costs."""


class Badge(NamedTuple):
    """How a verdict looks: its sign and word, the page's tone and the terminal's colour."""

    sign: str
    word: str
    tone: str
    colour: str


class Verdict(StrEnum):
    """What a validation came to; the value is JSON's. `verdict` has the rule of each."""

    IMPROVED = "improved"
    NOT_SHOWN = "not_shown"
    WORSE = "worse"
    SUSPICIOUS = "suspicious"

    @property
    def publishes(self) -> bool:
        """Whether the candidate's coefficients leave; else the identity does."""
        return self is Verdict.IMPROVED

    @property
    def badge(self) -> Badge:
        """How it looks."""
        match self:
            case Verdict.IMPROVED:
                return Badge("✓", "improved", "good", "green")
            case Verdict.NOT_SHOWN:
                return Badge("–", "not shown", "calm", "yellow")
            case Verdict.WORSE:
                return Badge("✕", "worse", "bad", "red")
            case Verdict.SUSPICIOUS:
                return Badge("!", "suspicious", "warn", "magenta")

    @property
    def word(self) -> str:
        """As a person reads it."""
        return self.badge.word


PENDING = Badge("…", "not validated", "calm", "")
"""The badge of a study without a verdict."""


@dataclass(frozen=True, config=FINITE)
class HeldOut:
    """One metric on the held-out images: means, and paired differences.

    `gain`: calibrated - identity of the quantized model. `taste`: what the same coefficients do to
    the full-precision model. `repair`: gain less that, or less what full precision gains by its own
    search, where there was one. `independent`: the search never saw it. `taste`, `repair` and
    `full_precision_calibrated` are None in outcomes from before they were measured.
    """

    full_precision: float
    identity: float
    calibrated: float
    gain: Interval
    full_precision_calibrated: float | None = None
    taste: Interval | None = None
    repair: Interval | None = None
    independent: bool = False

    @classmethod
    def measured(
        cls,
        sets: Mapping[str, Values],
        captions: Sequence[str],
        *,
        independent: bool,
        confidence: float,
        own_search: Values | None = None,
    ) -> Self:
        """From the four image sets' values, {mean's name: (N,)}.

        `own_search`: (N,), what full precision gains by a search of its own.
        """
        gain = sets["calibrated"] - sets["identity"]
        taste = sets["full_precision_calibrated"] - sets["full_precision"]
        shared = taste if own_search is None else own_search
        nothing = np.zeros_like(gain)
        return cls(
            **{name: float(values.mean()) for name, values in sets.items()},
            gain=paired_interval(gain, nothing, captions, confidence=confidence),
            taste=paired_interval(taste, nothing, captions, confidence=confidence),
            repair=paired_interval(gain, shared, captions, confidence=confidence),
            independent=independent,
        )

    def to_dict(self) -> dict[str, Any]:
        """As `report.json` has it; `difference` and `interval` are the gain's, `control` is the
        taste."""
        document = {
            "full_precision": self.full_precision,
            "full_precision_calibrated": self.full_precision_calibrated,
            "identity": self.identity,
            "calibrated": self.calibrated,
            **self.gain.to_dict(),
            "control": self.taste and self.taste.to_dict(),
            "repair": self.repair and self.repair.to_dict(),
            "independent": self.independent,
        }
        return {key: value for key, value in document.items() if value is not None}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote."""
        return cls(
            full_precision=found["full_precision"],
            full_precision_calibrated=found.get("full_precision_calibrated"),
            identity=found["identity"],
            calibrated=found["calibrated"],
            gain=Interval.from_dict(found),
            taste=_interval(found.get("control")),
            repair=_interval(found.get("repair")),
            independent=found.get("independent", False),
        )


@dataclass(frozen=True, config=FINITE)
class Distance:
    """A distance of image sets to real images, lower is better. `gain`: calibrated - identity;
    `repair`: that less what full precision gains. `independent`: counts in the verdict."""

    full_precision: float
    identity: float
    calibrated: float
    gain: Interval
    repair: Interval | None = None
    independent: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As `report.json` has it."""
        document = {
            "full_precision": self.full_precision,
            "identity": self.identity,
            "calibrated": self.calibrated,
            **self.gain.to_dict(),
            "repair": self.repair and self.repair.to_dict(),
            "independent": self.independent,
            "lower_is_better": True,
        }
        return {key: value for key, value in document.items() if value is not None}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote."""
        return cls(
            full_precision=found["full_precision"],
            identity=found["identity"],
            calibrated=found["calibrated"],
            gain=Interval.from_dict(found),
            repair=_interval(found.get("repair")),
            independent=found.get("independent", False),
        )


@dataclass(frozen=True, config=FINITE)
class Judged:
    """A candidate after the held-out prompts: its gains by metric, its guards, its verdict.

    Of the gains JAQ's alone is stored, and none of the guards.
    """

    candidate: Candidate
    gains: Mapping[str, Interval]
    guards: tuple[Guard, ...]
    verdict: Verdict
    chosen: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As `report.json` has it."""
        gain = self.gains[JAQ]
        return {
            **self.candidate.to_dict(),
            "verdict": self.verdict,
            "gain": {"mean": gain.mean, "low": gain.low, "high": gain.high},
            "chosen": self.chosen,
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote."""
        return cls(
            candidate=Candidate.from_dict(found),
            gains={JAQ: Interval(**found["gain"])},
            guards=(),
            verdict=Verdict(found["verdict"]),
            chosen=found["chosen"],
        )


class Gained(NamedTuple):
    """A control's mean of a metric, and its gain over the identity of its network."""

    mean: float
    gain: Interval


@dataclass(frozen=True, config=FINITE)
class Control:
    """A companion search's best trial, and what it came to on the held-out images, by metric.

    `what`: the search in words. `study`: the companion. `full_precision`: the network that it
    belongs to and is proven on; else it is the quantized one.
    """

    name: Line
    what: Line
    study: Line
    candidate: Candidate
    full_precision: bool
    held_out: Mapping[Line, Gained] = field(default_factory=dict)

    @property
    def network(self) -> str:
        """As `report.json` has it."""
        return "full precision" if self.full_precision else "quantized"

    def to_dict(self) -> dict[str, Any]:
        """As `report.json` has it."""
        return {
            "name": self.name,
            "what": self.what,
            "study": self.study,
            **self.candidate.to_dict(),
            "network": self.network,
            "held_out": {
                name: {"mean": found.mean, **found.gain.to_dict()}
                for name, found in self.held_out.items()
            },
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote."""
        return cls(
            name=found["name"],
            what=found["what"],
            study=found["study"],
            candidate=Candidate.from_dict(found),
            full_precision=found["network"] == "full precision",
            held_out={
                name: Gained(row["mean"], Interval.from_dict(row))
                for name, row in found["held_out"].items()
            },
        )


class Taken(NamedTuple):
    """The coefficients that leave. `forced`: against the verdict."""

    coefficients: Coefficients
    forced: bool


@dataclass(frozen=True, config=FINITE, repr=False)
class Proof:
    """A study's outcome. Before the first validation it is pending: `verdict` is None, and what
    only a validation knows is empty.

    `trials`: those that were over at the time. `images`: all that were made, the held-out ones
    among them; `grid_images`: what the official grid takes on the same calibration prompts. `best`:
    the candidate that the verdict is of, while it is pending the search's best; `coefficients`:
    what may be taken away. `repair_against`: what full precision was given. `scheduler`: the JSON
    config of the preconditioned scheduler. `pictures`: the artifact of the held-out ones, None
    where they weren't kept. `versions`: of qsched and other packages, None for what was not
    installed. `per_image`: {image set: {metric: a value an image}} in the order of the held-out
    prompts, of full precision, the identity and the candidate; empty in older outcomes.
    `expected`: what the search's model expects of the candidate's value, where it has one.
    """

    study: str
    verdict: Verdict | None
    sentence: Line
    budget: int
    trials: int
    stopped_early: int
    images: int
    grid_images: int
    seconds: float
    identity: Candidate | None
    best: Candidate | None
    fingerprint: Mapping[str, Any]
    coefficients: Coefficients | None = None
    held_out: Mapping[Line, HeldOut] = field(default_factory=dict)
    repair_against: Line = SAME_COEFFICIENTS
    candidates: tuple[Judged, ...] = ()
    controls: tuple[Control, ...] = ()
    guards: tuple[Guard, ...] = ()
    distances: Mapping[Line, Distance] = field(default_factory=dict)
    network: Line = ""
    versions: Mapping[Line, Line | None] = field(default_factory=dict)
    scheduler: str = ""
    pictures: str | None = None
    per_image: Mapping[str, Mapping[Line, tuple[float, ...]]] = field(default_factory=dict)
    expected: float | None = None

    @classmethod
    def pending(cls, definition: Study, status: Status) -> Self:
        """Where a study stands that has no verdict."""
        left = status.budget - status.done - status.parked
        next_up = f"qsched validate {status.study} proves it"
        if left:
            next_up = f"{left} trials are to be done"
        return cls(
            study=status.study,
            verdict=None,
            sentence="Nothing is proven yet: what is shown is the search's own, on the prompts it "
            f"optimised; {next_up}.",
            budget=status.budget,
            trials=status.done,
            stopped_early=status.stopped,
            images=status.images,
            grid_images=grid_images(definition),
            seconds=round(status.seconds, 2),
            identity=status.identity,
            best=status.best,
            fingerprint=status.fingerprint,
        )

    @property
    def badge(self) -> Badge:
        """How the verdict looks, or that there is none."""
        return self.verdict.badge if self.verdict else PENDING

    @property
    def candidate(self) -> Candidate:
        """What the verdict is of. Raises StudyError while there is none."""
        if self.verdict is None or self.best is None:
            raise StudyError(
                f"study {self.study!r} has no verdict yet; run qsched validate {self.study}"
            )
        return self.best

    @property
    def proven(self) -> bool:
        """Whether there is a verdict by which the candidate's coefficients leave."""
        return self.verdict is not None and self.verdict.publishes

    def taken(self, *, force: bool = False) -> Taken:
        """What is not proven isn't published: the identity leaves in its place. `force`: the best
        candidate all the same. Raises StudyError while there is no verdict."""
        best = self.candidate.coefficients
        if self.proven:
            return Taken(self.coefficients or best, forced=False)
        if force and not best.is_identity:
            return Taken(best, forced=True)
        return Taken(Coefficients.identity(best.steps), forced=False)

    def __repr__(self) -> str:
        """Short: `to_dict` has all."""
        return f"<Proof of {self.study!r}: {self.badge.word}: {self.sentence}>"

    def _repr_html_(self) -> str:
        heads = (self.badge.word, "full precision", "quantized", "calibrated", "gain")
        found: list[tuple[str, HeldOut | Distance]] = [*self.held_out.items()]
        found += self.distances.items()
        rows = [
            (
                name,
                *(f"{each:.3f}" for each in (row.full_precision, row.identity, row.calibrated)),
                f"{row.gain.mean:+.3f} [{row.gain.low:+.3f}, {row.gain.high:+.3f}]",
            )
            for name, row in found
        ]
        return table(f"{self.study}: {self.sentence}", rows, heads)

    @property
    def run(self) -> str:
        """What all files that show this outcome carry, and no others."""
        return digest(json.dumps([self._content(), self.scheduler], sort_keys=True))

    def report(self) -> dict[str, Any]:
        """The content of report.json."""
        return {"run": self.run, **self._content()}

    def _content(self) -> dict[str, Any]:
        document = {
            "study": self.study,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "budget": self.budget,
            "trials": self.trials,
            "stopped_early": self.stopped_early,
            "images_generated": self.images,
            "images_of_the_official_grid": self.grid_images,
            "seconds": self.seconds,
            "identity": self.identity and self.identity.to_dict(),
            "best": self.best and self.best.to_dict(),
        }
        if self.expected is not None:  # which only the sampler `prompts` knows
            document["expected"] = self.expected
        if self.verdict is None:
            return document | {"fingerprint": dict(self.fingerprint)}
        return {
            **document,
            "coefficients": self.coefficients and self.coefficients.to_dict(),
            "held_out": {name: found.to_dict() for name, found in self.held_out.items()},
            "repair_against": self.repair_against,
            "candidates": [judged.to_dict() for judged in self.candidates],
            "controls": [control.to_dict() for control in self.controls],
            "guards": [guard.to_dict() for guard in self.guards],
            "distributions": {name: found.to_dict() for name, found in self.distances.items()},
            "network": self.network,
            "fingerprint": dict(self.fingerprint),
            "versions": dict(self.versions),
        }

    def to_dict(self) -> dict[str, Any]:
        """As the database has it."""
        return {
            "version": VERSION,
            **self.report(),
            "scheduler": self.scheduler,
            "pictures": self.pictures,
            "per_image": {
                name: {metric: list(values) for metric, values in found.items()}
                for name, found in self.per_image.items()
            },
        }

    @classmethod
    def from_dict(cls, stored: Any) -> Self:
        """What `to_dict` wrote, or qsched 0.1; what an older outcome lacks is empty. Raises
        StudyError for a newer form and for what is none."""
        known = stored if isinstance(stored, Mapping) else {}
        study = known["study"] if is_name(known.get("study")) else "?"
        again = f"qsched validate {study} makes it anew"
        version = known.get("version", VERSION)
        if isinstance(version, int) and version > VERSION:
            raise StudyError(
                f"study {study!r}: its outcome has version {version}; expected at most "
                f"{VERSION}; upgrade qsched, or {again}"
            )
        try:
            return cls(
                study=stored["study"],
                verdict=Verdict(stored["verdict"]),
                sentence=stored["sentence"],
                budget=stored["budget"],
                trials=stored["trials"],
                stopped_early=stored.get("stopped_early", 0),
                images=stored["images_generated"],
                grid_images=stored["images_of_the_official_grid"],
                seconds=stored["seconds"],
                identity=Candidate.from_dict(stored["identity"]),
                best=Candidate.from_dict(stored["best"]),
                fingerprint=stored["fingerprint"],
                coefficients=Coefficients.from_dict(stored["coefficients"]),
                held_out=_each(HeldOut.from_dict, stored.get("held_out", {})),
                repair_against=stored.get("repair_against", SAME_COEFFICIENTS),
                candidates=tuple(map(Judged.from_dict, stored.get("candidates", ()))),
                controls=tuple(map(Control.from_dict, stored.get("controls", ()))),
                guards=tuple(map(Guard.from_dict, stored.get("guards", ()))),
                distances=_each(Distance.from_dict, stored.get("distributions", {})),
                network=stored.get("network", ""),
                versions=stored.get("versions", {}),
                scheduler=stored["scheduler"],
                pictures=stored.get("pictures"),
                per_image=stored.get("per_image", {}),
                expected=stored.get("expected"),
            )
        except (CoefficientsError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise StudyError(
                f"study {study!r}: its outcome can't be read: {unreadable(error)}; {again}"
            ) from error


def keep(study: StoredStudy, proof: Proof) -> None:
    """Stores the outcome of a validation; a later one replaces it."""
    study.storage.conclude(study.incarnation, proof.to_dict())


def kept(study: StoredStudy) -> Proof | None:
    """The outcome of a study's last validation; None before the first. Raises StudyError."""
    stored = study.storage.outcome(study.incarnation)
    if stored is None:
        return None
    proof = Proof.from_dict(stored)
    if proof.study != study.name:
        raise StudyError(
            f"study {study.name!r}: its stored outcome is one of {proof.study!r}; "
            f"qsched validate {study.name} makes it anew"
        )
    return proof


def outcome_of(study: StoredStudy, status: Status) -> Proof:
    """What is kept of a study, else where it stands."""
    return kept(study) or Proof.pending(study.definition, status)


def grid_images(definition: Study) -> int:
    """The images that the official grid takes on the study's calibration prompts."""
    return GRID * len(definition.calibration)


def versions_of(study: Study) -> dict[str, str | None]:
    """Those of qsched and of the packages that the study's values depend on, here and now."""
    used = versions(study.tables)
    return {name.removeprefix("versions."): version for name, version in used.items()}


def _interval(found: Mapping[str, Any] | None) -> Interval | None:
    return None if found is None else Interval.from_dict(found)


def _each(
    read: Callable[[Mapping[str, Any]], T], found: Mapping[str, Mapping[str, Any]]
) -> dict[str, T]:
    return {name: read(row) for name, row in found.items()}
