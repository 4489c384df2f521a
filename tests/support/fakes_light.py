"""Small valid studies; no torch."""

from pathlib import Path
from typing import TypedDict, Unpack

from qsched.study.study import Study, load_study

STUDY = """
name = "{name}"
[model]
name = "demo"
[sampling]
steps = 4
[quantization]
scheme = "w4a8"
[objective]
preset = "{preset}"
terms = [
    {{ scorer = "demo-alignment", weight = 1.0 }},
    {{ scorer = "demo-quality", weight = 2.0 }},
]
[search]
sampler = "{sampler}"
trials = {trials}
seed = {seed}
stop_below = {stop_below}
prior = {prior}
[prompts]
calibration = ["a", "b", "c", "d", "e", "f"]
held_out = ["g", "h", "i"]
[validation]
metrics = ["pixels"]
[execution]
batch_size = 2
"""


class Changes(TypedDict, total=False):
    """What a test may have otherwise."""

    name: str
    trials: int
    seed: int
    preset: str
    stop_below: float
    prior: float
    sampler: str


DEFAULTS = Changes(
    name="fake", trials=6, seed=0, preset="plain", stop_below=0.0, prior=0.0, sampler="tpe"
)


def study_file(folder: Path, **changes: Unpack[Changes]) -> Path:
    """A small valid study file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.toml"
    path.write_text(STUDY.format(**DEFAULTS | changes))
    return path


def study(folder: Path, **changes: Unpack[Changes]) -> Study:
    """A small valid study."""
    return load_study(study_file(folder, **changes))
