"""The artifact store of a study: its contact sheets and the held-out pictures of its verdict."""

import io
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore
from optuna.artifacts._upload import ARTIFACTS_ATTR_PREFIX
from optuna.artifacts.exceptions import ArtifactNotFound

from qsched.errors import ConfigError, MirrorLost, QschedError, StudyGone, in_one_line
from qsched.pictures.sheets import Pictures
from qsched.proof import outcome
from qsched.proof.outcome import Proof
from qsched.report import files
from qsched.service.database import Database
from qsched.service.stored_study import StoredStudy
from qsched.service.trials import uploaded
from qsched.study.study import ARTIFACTS

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

logger = logging.getLogger(__name__)


S3 = "s3://"

PROBE = "qsched-doctor"
"""What is written to a bucket and removed from it to see whether that can be done."""

TIMEOUT = 10.0
"""Seconds in which a bucket has to answer, twice: a worker waits for it."""


class Folder(FileSystemArtifactStore):
    """A folder that is made with its first picture."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """As every store."""
        self.path.mkdir(parents=True, exist_ok=True)
        super().write(artifact_id, content_body)


def place_of(store: str | None, database: Database) -> str:
    """Where pictures lie: s3://bucket, or a folder's absolute path.

    `store`: as `gallery.store`; None is the folder artifacts/ beside a SQLite file, else
    storage/artifacts.
    """
    if store and store.startswith(S3):
        return store
    beside = database.path.parent if database.path else Path("storage")
    return str((Path(store) if store else beside / "artifacts").resolve())


def artifact_store(place: str) -> "ArtifactStore":
    """The store at a place: a folder, or s3://bucket (with boto3's own credentials).

    Makes nothing. Raises ConfigError.
    """
    if not place.startswith(S3):
        return Folder(Path(place))
    bucket = place.removeprefix(S3).strip("/")
    if "/" in bucket or not bucket:
        raise ConfigError(f"gallery.store = {place!r}; expected s3://bucket without a path")
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise ConfigError(
            f"gallery.store = {place!r} needs boto3: pip install 'qsched[s3]'"
        ) from error
    patience = Config(
        connect_timeout=TIMEOUT,
        read_timeout=TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": 2},
    )
    return Boto3ArtifactStore(bucket, boto3.client("s3", config=patience))


def complaint(place: str) -> str | None:
    """Why pictures can't be kept at a place, in one line; None if they can. Leaves nothing."""
    try:
        store = artifact_store(place)
        if isinstance(store, Folder):
            there = next(each for each in (store.path, *store.path.parents) if each.exists())
            if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
                return f"{place}: {there} is no folder that can be written to; set gallery.store"
        else:
            store.write(PROBE, io.BytesIO(b""))
            store.remove(PROBE)
    except QschedError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - any store's own errors
        return f"{place}: {in_one_line(error)}; see to the bucket and AWS_ENDPOINT_URL"
    return None


def store_of(study: StoredStudy) -> "ArtifactStore":
    """The store of a study's pictures. Raises ConfigError."""
    return artifact_store(_place(study))


def _place(study: StoredStudy) -> str:
    definition, named = study.definition, study.definition.tables.gallery.store
    if named is not None and definition.store is None:
        logger.warning(
            "study %r: its pictures are elsewhere, at gallery.store = %r by the database alone; "
            "set %s to it if that is right",
            *(study.name, named, ARTIFACTS),
        )
    return place_of(definition.store, study.storage.database)


def conclude(study: StoredStudy, proof: Proof, pictures: Pictures) -> None:
    """Stores the outcome of a validation and its pictures, in the place of earlier ones.

    The outcome names its pictures, so both are replaced at once: earlier ones are removed only
    after it. Pictures that can't be stored are no reason to lose a verdict; that is logged. Raises
    StudyGone.
    """
    made = keep(study, pictures)
    outcome.keep(study, replace(proof, pictures=made))
    try:
        for artifact in _held_out(study) if made else ():
            if artifact != made:
                _remove(study, artifact)
    except Exception as error:  # noqa: BLE001 - any store's own errors
        logger.warning("earlier held-out pictures were not removed: %s", in_one_line(error))


def keep(study: StoredStudy, pictures: Pictures) -> str | None:
    """Stores held-out pictures beside earlier ones; the artifact, or None if it can't be done."""
    try:
        store, mirror = store_of(study), study.trials.study
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / files.HELD_OUT
            pictures.write_sheet(path)
            key, value = uploaded(path, store)
            study.trials.fenced(
                lambda: mirror._storage.set_study_system_attr(mirror._study_id, key, value)
            )
            return key.removeprefix(ARTIFACTS_ATTR_PREFIX)
    except StudyGone:
        raise
    except Exception as error:  # noqa: BLE001 - any store's own errors
        logger.warning("the held-out pictures were not stored: %s", in_one_line(error))
    return None


def kept(study: StoredStudy, proof: Proof) -> Pictures | str:
    """The held-out pictures of a study's verdict; or, in a sentence, why they can't be shown
    here."""
    if proof.verdict is None:
        return "Held-out pictures are made when the study is validated."
    again = f"qsched validate {study.name} makes them anew."
    there = _held_out(study)
    found = proof.pictures if proof.pictures in there else next(reversed(there), None)
    if found is None:
        return f"The held-out pictures of this verdict were not kept; {again}"
    try:
        with store_of(study).open_reader(found) as file:
            pictures = Pictures.read_sheet(io.BytesIO(file.read()))
    except Exception:  # any store's own errors
        logger.info("the held-out pictures can't be read", exc_info=True)
        return (
            "The held-out pictures can't be read from here: they lie with the study's artifacts "
            "where it was validated. Make the report there."
        )
    if pictures.coefficients != proof.candidate.coefficients.to_dict():
        return f"The pictures that are kept belong to an earlier verdict; {again}"
    return pictures


def clear(study: StoredStudy) -> str | None:
    """Removes a study's contact sheets and held-out pictures from their store.

    Returns what stays there, in a sentence, where the store doesn't do it; None if all are gone.
    """
    left, named = _ids(study), study.definition.tables.gallery.store
    if left and named is not None and study.definition.store is None:
        why = f"by the database alone; set {ARTIFACTS} to it before, or remove them there"
        return f"{len(left)} pictures in {named} ({why}): {', '.join(left)}"
    try:
        store = store_of(study) if left else None
        while store and left:
            with suppress(ArtifactNotFound):
                store.remove(left[-1])
            left.pop()
    except Exception as error:  # noqa: BLE001 - any store's own errors
        return f"{len(left)} pictures in {_place(study)} ({in_one_line(error)}): {', '.join(left)}"
    return None


def inventory(study: StoredStudy) -> tuple[int, int]:
    """How many of a study's pictures are in its store, and how many are gone. Raises the store's
    own errors."""
    store, listed = store_of(study), _ids(study)
    kept = 0
    for artifact in listed:
        with suppress(ArtifactNotFound), store.open_reader(artifact):
            kept += 1
    return kept, len(listed) - kept


def _ids(study: StoredStudy) -> list[str]:
    """All artifacts of a study and of its trials; none where somebody deleted the mirror."""
    try:
        trials = study.trials.all()
    except MirrorLost:
        return []
    attributes = (_attributes(study), *(trial.system_attrs for trial in trials))
    return [artifact for each in attributes for artifact in _listed(each)]


def _held_out(study: StoredStudy) -> list[str]:
    """The artifacts with held-out pictures: one, but where a process died between two."""
    listed = _listed(_attributes(study))
    return [artifact for artifact, name in listed.items() if name == files.HELD_OUT]


def _remove(study: StoredStudy, artifact: str) -> None:
    """As optuna-dashboard does it: null remains."""
    with suppress(ArtifactNotFound):
        store_of(study).remove(artifact)
    mirror, key = study.trials.study, ARTIFACTS_ATTR_PREFIX + artifact
    study.trials.fenced(
        lambda: mirror._storage.set_study_system_attr(mirror._study_id, key, json.dumps(None))
    )


def _attributes(study: StoredStudy) -> dict[str, Any]:
    """What the mirror carries; nothing where somebody deleted it."""
    try:
        return study.trials.attributes()
    except MirrorLost:
        return {}


def _listed(attributes: Mapping[str, Any]) -> dict[str, str]:
    """{artifact: file name}, as Optuna writes them; what others wrote there is left alone: an id
    becomes a path in the store. optuna-dashboard leaves null where a person has removed one."""
    texts = (
        value for key, value in attributes.items() if str(key).startswith(ARTIFACTS_ATTR_PREFIX)
    )
    found = {}
    for text in texts:
        with suppress(TypeError, ValueError, LookupError):
            meta = json.loads(text)
            number = str(uuid.UUID(str(meta["artifact_id"])))
            if number == meta["artifact_id"]:
                found[number] = str(meta["filename"])
    return found
