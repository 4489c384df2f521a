"""What a person takes away: coefficients.json and a scheduler folder. Needs no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsched.coefficients import Coefficients


def export(
    folder: Path, coefficients: Coefficients, scheduler: str, provenance: Mapping[str, Any]
) -> list[Path]:
    """Writes `folder`/coefficients.json and `folder`/scheduler/scheduler_config.json.

    `scheduler`: the JSON config of the preconditioned scheduler of the same class, whose
    coefficients are replaced by `coefficients`. `provenance` goes into coefficients.json. Returns
    the paths written.
    """
    config = json.loads(scheduler) | {
        "model_coefficients": list(coefficients.model),
        "sample_coefficients": list(coefficients.sample),
    }
    target = folder / "scheduler" / "scheduler_config.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    numbers = folder / "coefficients.json"
    coefficients.save(numbers, provenance)
    return [numbers, target]
