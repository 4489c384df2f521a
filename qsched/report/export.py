"""What a person takes away: coefficients.json, a scheduler folder, a README. Needs no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qsched.errors import CoefficientsError, DocumentError, StudyError
from qsched.files import outputs
from qsched.files.documents import is_file, is_folder, json_object, shown
from qsched.plugins import is_reference, may_run
from qsched.proof.outcome import Proof
from qsched.report import files
from qsched.schedule import standalone
from qsched.schedule.coefficients import Coefficients
from qsched.signatures import of_diffusers
from qsched.tables import unreadable

DIFFUSERS = "diffusers"
_STATED = ("run", "study", "verdict", "forced")
"""What scheduler_config.json says of where its coefficients come from."""


def contents(
    coefficients: Coefficients,
    scheduler: str,
    provenance: Mapping[str, Any],
    *,
    card: str | None = None,
) -> dict[str, str]:
    """{file of the folder: its text}: the coefficients, a folder of the scheduler and, with a
    `card`, a README.

    `scheduler`: the JSON config of the preconditioned scheduler of the same class, whose
    coefficients are replaced by `coefficients`. `provenance` goes into the coefficients' file.
    diffusers loads the scheduler folder without qsched: scheduler_config.json, the class in one
    file, and config.json, which leads to it.
    """
    config = scheduler_config(scheduler) | _series(coefficients)
    config |= {"_calibration": _stated(provenance)}
    package = config.pop("_stock_module", DIFFUSERS)
    stock = stock_of(config)
    texts = {
        files.COEFFICIENTS: coefficients.to_json(provenance),
        files.CONFIG: json.dumps(config, indent=2) + "\n",
        f"{files.SCHEDULER}/config.json": json.dumps(standalone.auto_map(stock), indent=2) + "\n",
        f"{files.SCHEDULER}/{standalone.module_name(stock)}.py": standalone.source(stock, package),
    }
    return texts if card is None else texts | {files.CARD: card}


def coefficients_of(path: Path) -> Coefficients:
    """What a coefficients.json holds; in an exported folder, what its scheduler says too.

    Raises CoefficientsError, naming the file, for one that can't be read, and for one that another
    run wrote than the scheduler beside it.
    """
    if is_folder(path.parent):
        outputs.settle(path.parent)
    found, config = Coefficients.load(path), path.parent / files.CONFIG
    if path.name != files.COEFFICIENTS or not is_file(config):
        return found
    try:
        beside, provenance = json_object(config), json_object(path).get("provenance", {})
    except DocumentError as error:
        raise CoefficientsError(f"{config}: {error}") from error
    here, there = _series(found), beside
    if "_calibration" in beside:  # diffusers drops it where it saves the scheduler anew
        here, there = {**here, **_stated(provenance)}, {**there, **_calibration(beside)}
    for key, value in here.items():
        if there.get(key) != value:
            raise CoefficientsError(
                f"{path}: {key} = {shown(value)}, but {shown(there.get(key))} in {config}: two "
                "exports wrote them; let qsched export write both anew, or take this file elsewhere"
            )
    return found


def _series(coefficients: Coefficients) -> dict[str, Any]:
    """As scheduler_config.json has them."""
    return {
        "model_coefficients": list(coefficients.model),
        "sample_coefficients": list(coefficients.sample),
        "average_weights": list(coefficients.average) or None,
    }


def _stated(provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {key: provenance[key] for key in _STATED if key in provenance}


def _calibration(config: Mapping[str, Any]) -> Mapping[str, Any]:
    stated = config.get("_calibration")
    return stated if isinstance(stated, dict) else {}


def provenance(proof: Proof, *, forced: bool) -> dict[str, Any]:
    """What the exported numbers say of where they come from; `forced`: against the verdict."""
    return {
        "run": proof.run,
        "study": proof.study,
        "verdict": proof.verdict,
        "sentence": proof.sentence,
        "trials": proof.trials,
        "best": proof.candidate.to_dict(),
        "network": proof.network,
        "versions": dict(proof.versions),
        "forced": forced,
    }


def scheduler_config(stored: str) -> dict[str, Any]:
    """The config of a preconditioned scheduler, as an outcome has it. Its class becomes a line of
    code: it has to be a scheduler of diffusers, or of a module that may run here. Raises
    StudyError.
    """
    try:
        config: dict[str, Any] = TypeAdapter(dict[str, Any]).validate_json(stored)
    except ValidationError as error:
        raise StudyError(f"the stored scheduler can't be read: {unreadable(error)}") from error
    stock, package = stock_of(config), str(config.get("_stock_module", DIFFUSERS))
    if package == DIFFUSERS:
        known = of_diffusers(stock)
        fitting = known is not None and "SchedulerMixin" in known.names
    else:
        fitting = is_reference(f"{package}:{stock}") and may_run(package)
    if not fitting:
        raise StudyError(
            f"the stored scheduler is {stock[:100]!r} of {package[:100]!r}; expected one of "
            "diffusers, or of a module that --allow-code names"
        )
    return config


def stock_of(config: Mapping[str, Any]) -> str:
    """The stock class of a preconditioned scheduler's config."""
    return str(config.get("_class_name")).removeprefix(standalone.PREFIX)
