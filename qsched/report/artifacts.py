"""The artifact store of a study: its contact sheets and the held-out pictures of its verdict."""

import io
import json
import logging
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsched.errors import ConfigError
from qsched.pictures.sheets import Pictures
from qsched.proof.outcome import Proof
from qsched.report import files
from qsched.service.database import Database
from qsched.service.stored_study import StoredStudy

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

logger = logging.getLogger(__name__)


def artifact_store(place: str | None, database: Database) -> "ArtifactStore":
    """Where pictures lie: a folder, or s3://bucket (with boto3's own credentials).

    None is the folder artifacts/ beside a SQLite file, else storage/artifacts. Raises ConfigError.
    """
    from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore

    if place and place.startswith("s3://"):
        bucket = place.removeprefix("s3://").strip("/")
        if "/" in bucket:
            raise ConfigError(f"gallery.store = {place!r}; expected s3://bucket without a path")
        try:
            return Boto3ArtifactStore(bucket)
        except ImportError as error:
            raise ConfigError(
                f"gallery.store = {place!r} needs boto3: pip install boto3"
            ) from error
    beside = database.path.parent if database.path else Path("storage")
    folder = Path(place) if place else beside / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(folder)


def store_of(study: StoredStudy) -> "ArtifactStore":
    """The store that a study names."""
    return artifact_store(study.definition.tables.gallery.store, study.storage.database)


def keep(study: StoredStudy, pictures: Pictures) -> None:
    """Stores the held-out pictures as an artifact of the study, in the place of earlier ones.

    What goes wrong here is logged; a picture is no reason to lose a verdict.
    """
    from optuna.artifacts import upload_artifact

    try:
        store = store_of(study)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / files.HELD_OUT
            pictures.write_sheet(path)
            earlier = _held_out(study)
            if earlier is None:
                mirror = study.trials.study
                upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=mirror)
            else:
                with path.open("rb") as file:
                    store.write(earlier, file)
    except Exception:
        logger.warning("the held-out pictures were not stored", exc_info=True)


def kept(study: StoredStudy, proof: Proof) -> Pictures | str:
    """The held-out pictures of a study's verdict; or, in a sentence, why they can't be shown
    here."""
    if proof.verdict is None:
        return "Held-out pictures are made when the study is validated."
    again = f"qsched validate {study.name} makes them anew."
    found = _held_out(study)
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


def clear(study: StoredStudy) -> None:
    """Removes a study's contact sheets and held-out pictures from their store."""
    from optuna.artifacts.exceptions import ArtifactNotFound

    store = store_of(study)
    trials = study.trials.study.get_trials(deepcopy=False)
    for attributes in (_attributes(study), *(trial.system_attrs for trial in trials)):
        for artifact in _listed(attributes):
            with suppress(ArtifactNotFound):
                store.remove(artifact)


def _held_out(study: StoredStudy) -> str | None:
    """The id of the study's artifact; None if there is none."""
    listed = _listed(_attributes(study))
    return next((artifact for artifact, name in listed.items() if name == files.HELD_OUT), None)


def _attributes(study: StoredStudy) -> dict[str, Any]:
    optuna = study.storage.database.optuna
    return optuna.get_study_system_attrs(study.trials.study._study_id)


def _listed(attributes: Mapping[str, Any]) -> dict[str, str]:
    """{artifact: file name}; optuna-dashboard leaves null where a person has removed one, which
    Optuna's own listing can't read."""
    from optuna.artifacts._upload import ARTIFACTS_ATTR_PREFIX

    found = (json.loads(v) for k, v in attributes.items() if k.startswith(ARTIFACTS_ATTR_PREFIX))
    return {meta["artifact_id"]: meta["filename"] for meta in found if meta}
