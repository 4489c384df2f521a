"""Small valid studies; no torch."""

from pathlib import Path

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
sampler = "tpe"
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


def study_file(
    folder: Path,
    *,
    name: str = "fake",
    trials: int = 6,
    seed: int = 0,
    preset: str = "plain",
    stop_below: float = 0.0,
    prior: float = 0.0,
) -> Path:
    """A small valid study file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.toml"
    text = STUDY.format(
        name=name, trials=trials, seed=seed, preset=preset, stop_below=stop_below, prior=prior
    )
    path.write_text(text)
    return path


def study(folder: Path, **changes: object) -> Study:
    """A small valid study."""
    return load_study(study_file(folder, **changes))  # type: ignore[arg-type]
