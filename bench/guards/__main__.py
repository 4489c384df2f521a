"""How far pictures shift from full precision by quantization alone, and by coefficients.

    python -m bench.guards [--schemes w8a8,w4a8,w4a4] [--json]

Each row is an image set of the demo study's held-out prompts: the unmodified schedule at each
scheme, and full precision with coefficients that a search might like. The columns are the relative
shifts that `validation.limits` are limits of, and how far the set is from the scenes that the demo
model learned from.
"""

import argparse
from pathlib import Path

import torch

from bench.printing import show
from qsched.evidence.appearance import Appearance
from qsched.evidence.distances import Cloud, Statistics
from qsched.evidence.guards import guards
from qsched.evidence.real_images import demo_features, demo_scenes
from qsched.pictures.pixels import eight_bit
from qsched.pipelines.generator import ImageGenerator
from qsched.pipelines.loading import load_model
from qsched.quantization.table import Quantization
from qsched.schedule.coefficients import Coefficients
from qsched.study.study import Study, load_study

STUDY = Path(__file__).parents[2] / "studies" / "demo.toml"
RAMPS = ((1.1, 1.0), (1.2, 1.0), (0.9, 1.0), (1.0, 1.1), (1.0, 0.9))
"""First steps' c_eps and c_x; linear to 1 at the last."""

LAST = ((1.0, 1.1), (1.0, 1.2), (1.0, 0.9))
"""The last step's c_eps and c_x alone: c_x acts like an output gain there."""


def measure(study: Study, scheme: str, wanted: list[Coefficients]) -> list[dict[str, float]]:
    """The appearance and the Frechet distance of each set."""
    loaded = load_model(study.tables.model, Quantization(scheme=scheme, skip=()))
    sampling, features = study.tables.sampling, demo_features()
    generator = ImageGenerator(loaded.pipeline, sampling, batch_size=16)
    captions = [prompt.text for prompt in study.held_out]
    scenes = Statistics(demo_scenes())
    rows = []
    for coefficients in wanted:
        made = generator.generate(study.held_out, coefficients)
        images = torch.from_numpy(eight_bit(made.numpy()))
        appearance = Appearance()
        appearance.add(images / 255)
        distance = Cloud(features(images), scenes).distance()
        rows.append({**appearance.values(captions), "frechet": distance})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schemes", default="w8a8,w4a8,w4a4")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    study = load_study(STUDY)
    steps = study.tables.sampling.steps
    plain, ones = Coefficients.identity(steps), (1.0,) * (steps - 1)
    found = {
        f"full precision, ramp from c_eps {model}, c_x {sample}": Coefficients.ramp(
            steps, model, sample
        )
        for model, sample in RAMPS
    }
    for model, sample in LAST:
        name = f"full precision, last step c_eps {model}, c_x {sample}"
        found[name] = Coefficients((*ones, model), (*ones, sample))
    full, *others = measure(study, "none", [plain, *found.values()])
    sets = dict(zip(found, others, strict=True))
    for scheme in options.schemes.split(","):
        (sets[scheme],) = measure(study, scheme, [plain])
    limits = study.tables.validation.limits.model_dump()
    rows = [{"images": "full precision", "frechet": full["frechet"]}]
    for name, values in sets.items():
        shifts = {guard.name: f"{guard.shift:+.1%}" for guard in guards(full, full, values, limits)}
        rows.append({"images": name, **shifts, "frechet": values["frechet"]})
    show({"Shift from full precision": rows}, as_json=options.json)


if __name__ == "__main__":
    main()
