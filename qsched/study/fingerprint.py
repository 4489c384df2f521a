"""What a study's values depend on, and how two studies differ in it.

Each room says what it computes with: the scorers, the sampler and the backend that a study uses
name their packages, and a plug-in's code has an origin.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qsched.captions import READERS
from qsched.digests import whole
from qsched.evidence.table import packages_of_reference
from qsched.libraries import installed_version
from qsched.pipelines.table import origins_of_model, packages_of_model
from qsched.plugins import Origin, is_reference
from qsched.quantization.backend import origin_of
from qsched.scoring.catalog import SCORERS, metric_entry
from qsched.search.catalog import packages_of_sampler
from qsched.study.file import StudyFile

LOADED = "loaded."
"""What the keys begin with that name the files which a scorer was loaded from, {file: SHA-256}:
`loaded.clipscore`. Whoever loads it first enters them, so that only those compare who load it."""

FORMAT = 2
"""Of a fingerprint. Those of version 0.1 have none; they list some packages, used or not."""


def versions(tables: StudyFile) -> dict[str, str | None]:
    """{"versions.PACKAGE": its version} of all that a study's values and proposals depend on."""
    names = {
        "numpy",
        "qsched",
        *packages_of_model(tables.model),
        *tables.quantization.resolved()[0].packages,
        *packages_of_sampler(tables.search.sampler, tables.space.dimension),
        *packages_of_reference(tables.validation.reference),
        *(package for name in _scorers(tables) for package in metric_entry(name).packages),
    }
    return {f"versions.{name}": installed_version(name) for name in sorted(names)}


def plugins(tables: StudyFile) -> dict[str, str]:
    """{"plugins.NAME": the origin of its code} of the plug-ins that make images and values."""
    return {f"plugins.{name}": str(origin) for name, origin in _origins(tables)}


def modules(tables: StudyFile) -> frozenset[str]:
    """The modules of what a study names as ``module:name``."""
    model, heads = tables.model, SCORERS.names()
    named = [
        *(name for name in _scorers(tables) if name.partition(":")[0] not in heads),
        *(model.source, model.name, model.full_precision),
        *(tables.quantization.backend, tables.prompts.reader, tables.execution.launcher),
    ]
    return frozenset(name.partition(":")[0] for name in named if name and is_reference(name))


def weights(tables: StudyFile) -> dict[str, str | None]:
    """{"weights.NAME": what tells a scorer's weights} of those of which something does: files on
    this machine by their digest, None where one isn't there."""
    told = {name: metric_entry(name).weights for name in _scorers(tables)}
    return {f"weights.{name}": _told(places) for name, places in told.items() if places}


def _told(places: Sequence[str]) -> str | None:
    found = [each if "@" in each else _digest_of(Path(each)) for each in places]
    return " ".join(each for each in found if each) if all(found) else None


def _digest_of(place: Path) -> str | None:
    return whole(place) if place.exists() else None


def reader(tables: StudyFile) -> dict[str, str]:
    """The same of the plug-in that reads the prompts, if there is one."""
    name = tables.prompts.reader
    origin = READERS.find(name).origin if name else None
    return {f"plugins.{name}": str(origin)} if origin else {}


def without_reader(tables: StudyFile, stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored fingerprint without the plug-in that read the prompts."""
    return {
        key: value for key, value in stored.items() if key != f"plugins.{tables.prompts.reader}"
    }


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str]:
    """{key in which two fingerprints differ: both values in words}.

    Of the versions in a fingerprint of version 0.1 only those count that are in the other one too;
    it has nothing of the code of plug-ins. What is known only once it is loaded counts where the
    current one has it.
    """
    keys = {key for key in stored if not key.startswith(LOADED)} | current.keys()
    if "format" not in stored:
        both = stored.keys() & current.keys()
        unknown = ("versions.", "plugins.", "weights.")
        keys = {key for key in keys - {"format"} if key in both or not key.startswith(unknown)}
    return {
        key: f"{key}: the study has {stored.get(key)!r}, now it is {current.get(key)!r}"
        for key in sorted(keys)
        if stored.get(key) != current.get(key)
    }


def _scorers(tables: StudyFile) -> list[str]:
    return [*(term.scorer for term in tables.objective.terms), *tables.validation.metrics]


def _origins(tables: StudyFile) -> Iterator[tuple[str, Origin]]:
    backend = tables.quantization.resolved()[0].name
    origins = {name: metric_entry(name).origin for name in _scorers(tables)}
    origins |= {backend: origin_of(backend), **origins_of_model(tables.model)}
    for name, origin in origins.items():
        if origin is not None:
            yield name, origin
