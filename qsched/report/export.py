"""What a person takes away: coefficients.json, a scheduler folder, a README. Needs no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qsched.errors import StudyError
from qsched.plugins import is_reference, may_run
from qsched.proof.outcome import Proof
from qsched.report import files
from qsched.schedule import standalone
from qsched.schedule.coefficients import Coefficients
from qsched.signatures import of_diffusers
from qsched.tables import unreadable

DIFFUSERS = "diffusers"
_STATED = ("study", "verdict", "forced")
"""What scheduler_config.json says of where its coefficients come from."""


def export(
    folder: Path,
    coefficients: Coefficients,
    scheduler: str,
    provenance: Mapping[str, Any],
    *,
    card: str | None = None,
) -> list[Path]:
    """Writes the coefficients, a folder of the scheduler and, with a `card`, a README.

    `scheduler`: the JSON config of the preconditioned scheduler of the same class, whose
    coefficients are replaced by `coefficients`. `provenance` goes into the coefficients' file.
    diffusers loads the scheduler folder without qsched: scheduler_config.json, the class in one
    file, and config.json, which leads to it. Returns the paths written, the coefficients' first.
    Raises StudyError if they can't be.
    """
    config = scheduler_config(scheduler) | {
        "model_coefficients": list(coefficients.model),
        "sample_coefficients": list(coefficients.sample),
        "average_weights": list(coefficients.average) or None,
        "_calibration": {key: provenance[key] for key in _STATED if key in provenance},
    }
    package = config.pop("_stock_module", DIFFUSERS)
    stock = stock_of(config)
    target = folder / files.SCHEDULER
    texts = {
        target / "scheduler_config.json": json.dumps(config, indent=2) + "\n",
        target / "config.json": json.dumps(standalone.auto_map(stock), indent=2) + "\n",
        target / f"{standalone.module_name(stock)}.py": standalone.source(stock, package),
    }
    if card is not None:
        texts[folder / files.CARD] = card
    numbers = folder / files.COEFFICIENTS
    with files.written():
        target.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
    coefficients.save(numbers, provenance)
    return [numbers, *texts]


def provenance(proof: Proof, *, forced: bool) -> dict[str, Any]:
    """What the exported numbers say of where they come from; `forced`: against the verdict."""
    return {
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
