"""What a validation returns and stores, made up."""

import json
from typing import Any

import numpy as np

from qsched.pipelines.catalog import DEMO_FOLDER
from qsched.proof.validation import HeldOut, Validation
from qsched.schedule.coefficients import Coefficients
from qsched.service.status import Candidate
from qsched.statistics import Interval

RAMP = Coefficients.ramp(4, 1.1, 0.9)
DEMO_SCHEDULER = json.loads(
    (DEMO_FOLDER / "pipeline" / "scheduler" / "scheduler_config.json").read_text()
)


SIDE = 16


def outcome(
    verdict: str, best: Coefficients = RAMP, published: Coefficients | None = None
) -> dict[str, Any]:
    """What a validation stores of a study with the demo's scheduler."""
    if published is None:
        published = best if verdict == "improved" else Coefficients.identity(best.steps)
    name = f"Preconditioned{DEMO_SCHEDULER['_class_name']}"
    row = {
        **{"full_precision": 3.0, "identity": 1.0, "calibrated": 1.5},
        **{"difference": 0.5, "interval": [0.25, 0.75]},
    }
    return {
        "study": "fake",
        "verdict": verdict,
        "sentence": "It is so.",
        "trials": 6,
        "best": {"slot": 3, "value": 1.5, "coefficients": best.to_dict()},
        "coefficients": published.to_dict(),
        "network": "w4a8: all of it",
        "versions": {"qsched": "0.1.0", "diffusers": "0.42.1", "timm": None},
        "held_out": {"jaq": row, "pixels": row | {"independent": True}},
        "distributions": {"frechet": row | {"independent": True, "lower_is_better": True}},
        "scheduler": json.dumps(DEMO_SCHEDULER | {"_class_name": name}),
    }


def validation(verdict: str = "improved", *, columns: int = 3) -> Validation:
    """A validation whose pictures hold a checkerboard, each its own grey level."""
    board = (np.indices((SIDE, SIDE)).sum(axis=0) % 2)[None, :, :, None]
    levels = np.arange(4 * columns).reshape(4, columns, 1, 1, 1) * 10
    pictures = (100 * board + levels).repeat(3, axis=-1).astype(np.uint8)
    interval = Interval(0.5, 0.25, 0.75)
    metric = HeldOut(2.0, 2.1, 1.0, 1.5, interval, interval, interval, independent=True)
    return Validation(
        verdict=verdict,
        sentence="It is so.",
        candidate=Candidate(3, 1.5, RAMP),
        metrics={"jaq": metric, "pixels": metric},
        confidence=0.95,
        images=12,
        network="all of it",
        scheduler=json.dumps({"_class_name": "PreconditionedLCMScheduler", "shift": 1.0}),
        captions=("a flat owl left of a shaded apple on a pink background",) * columns,
        pictures=dict(
            zip(
                ("full_precision", "full_precision_calibrated", "identity", "calibrated"),
                pictures,
                strict=True,
            )
        ),
    )
