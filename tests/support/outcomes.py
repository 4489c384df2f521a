"""What a validation stores and shows, made up."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qsched.evidence.guards import Guard
from qsched.files import outputs
from qsched.pictures.sheets import Pictures
from qsched.pipelines.catalog import DEMO_FOLDER
from qsched.proof.outcome import JAQ, Control, Distance, Gained, HeldOut, Judged, Proof, Verdict
from qsched.report.export import contents
from qsched.schedule.coefficients import Coefficients
from qsched.service.status import Candidate
from qsched.statistics import Interval

IDENTITY = Coefficients.identity(4)
RAMP = Coefficients.ramp(4, 1.1, 0.9)
DEMO_SCHEDULER = json.loads(
    (DEMO_FOLDER / "pipeline" / "scheduler" / "scheduler_config.json").read_text()
)
GAIN = Interval(0.5, 0.25, 0.75)
METRIC = HeldOut(
    full_precision=3.0,
    full_precision_calibrated=3.2,
    identity=1.0,
    calibrated=1.5,
    gain=GAIN,
    taste=Interval(0.2, 0.15, 0.25),
    repair=Interval(0.3, 0.2, 0.4),
)
UNSEEN = replace(METRIC, independent=True)
DISTANCE = Distance(
    full_precision=60.0,
    identity=130.0,
    calibrated=120.0,
    gain=Interval(-10.0, -12.0, -8.0),
    repair=Interval(-9.0, -11.0, -7.0),
    independent=True,
)
WELL = Guard("contrast", 1.0, 1.0, 1.1, limit=0.15)
TRIPPED = Guard("saturation", 1.0, 0.95, 1.4, limit=0.15)
SIDE = 16


def export(
    folder: Path, coefficients: Coefficients, scheduler: str, provenance: Mapping[str, Any]
) -> None:
    """A folder to take away, without a card."""
    with outputs.whole(folder) as unfinished:
        for name, text in contents(coefficients, scheduler, provenance).items():
            (unfinished / name).parent.mkdir(exist_ok=True)
            (unfinished / name).write_text(text)


def proof(
    verdict: Verdict | str = Verdict.IMPROVED,
    best: Coefficients = RAMP,
    published: Coefficients | None = None,
    **changes: Any,
) -> Proof:
    """The outcome of a small study with the demo's scheduler."""
    found = Verdict(verdict)
    if published is None:
        published = best if found.publishes else Coefficients.identity(best.steps)
    name = f"Preconditioned{DEMO_SCHEDULER['_class_name']}"
    made = Proof(
        study="fake",
        verdict=found,
        sentence="It is so.",
        budget=6,
        trials=6,
        stopped_early=0,
        images=48,
        grid_images=15_000,
        seconds=60.0,
        identity=Candidate(0, 1.0, Coefficients.identity(best.steps)),
        best=Candidate(3, 1.5, best),
        coefficients=published,
        held_out={JAQ: METRIC, "pixels": UNSEEN},
        distances={"frechet": DISTANCE},
        network="w4a8: all of it",
        fingerprint={"sampling.steps": best.steps, "model.lora": None},
        versions={"qsched": "0.1.0", "diffusers": "0.42.1", "timm": None},
        scheduler=json.dumps(DEMO_SCHEDULER | {"_class_name": name}),
    )
    return replace(made, **changes)


def whole(verdict: Verdict | str = Verdict.IMPROVED, **changes: Any) -> Proof:
    """An outcome with every part that there can be."""
    best, gains = Candidate(3, 1.5, RAMP), {JAQ: Interval(0.1, -0.1, 0.3)}
    searches = (("full-precision", True), ("grid", False))
    parts: dict[str, Any] = {
        "candidates": (
            Judged(best, gains, (), Verdict(verdict), chosen=True),
            Judged(replace(best, slot=4), gains, (), Verdict.SUSPICIOUS),
        ),
        "controls": tuple(
            Control(
                name,
                "another search",
                f"fake.{name}",
                Candidate(2, 1.0, RAMP),
                full_precision=full,
                held_out={metric: Gained(2.0, GAIN) for metric in (JAQ, "pixels")},
            )
            for name, full in searches
        ),
        "guards": (WELL, TRIPPED),
        "repair_against": "its own search",
    }
    return proof(verdict, **(parts | changes))


def pictures(columns: int = 3, coefficients: Coefficients = RAMP) -> Pictures:
    """Pictures that hold a checkerboard, each its own grey level."""
    board = (np.indices((SIDE, SIDE)).sum(axis=0) % 2)[None, :, :, None]
    levels = np.arange(4 * columns).reshape(4, columns, 1, 1, 1) * 10
    made = (100 * board + levels).repeat(3, axis=-1).astype(np.uint8)
    names = ("full_precision", "full_precision_calibrated", "identity", "calibrated")
    captions = ("a flat owl left of a shaded apple on a pink background",) * columns
    return Pictures(captions, dict(zip(names, made, strict=True)), coefficients.to_dict())
