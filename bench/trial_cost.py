"""What a trial costs without caches, with each of them, and with all: one run, same pixels.

    python bench/trial_cost.py [--prompts 32] [--trials 9] [--json]

A trial here is generating and scoring the calibration images of the demo model, as a worker does.
Variants take turns trial by trial, each with the same coefficients, so a slow moment of the machine
hits all of them; the ratios are of medians. The first trial, which fills the caches, isn't counted.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from qsched.catalog import model_entry
from qsched.coefficients import Coefficients
from qsched.defaults import sampling_of
from qsched.demo.captions import prompt_lists
from qsched.generate import CACHES, ImageGenerator
from qsched.models import denoiser, load_pipeline
from qsched.prompts import Prompt, with_seeds
from qsched.quantize import quantize
from qsched.score import load_scorers
from qsched.sections import Sampling

STEPS = (1, 2, 4)
BATCH = 16
VARIANTS = {
    "none": frozenset[str](),
    **{name: frozenset({name}) for name in ("embeddings", "noise", "first-call")},
    "all": CACHES,
}


def measure(steps: int, prompts: Sequence[Prompt], trials: int) -> dict[str, list[float]]:
    """{variant: seconds of each trial}. AssertionError if a cache changed a pixel."""
    entry = model_entry("demo")
    pipeline = load_pipeline("demo")
    quantize(denoiser(pipeline, entry.part), "w4a4", skip=())
    sampling = sampling_of("demo", Sampling(steps=steps))
    scorers = load_scorers(["demo-alignment", "demo-quality"])
    generators = {
        name: ImageGenerator(pipeline, sampling, part=entry.part, batch_size=BATCH, caches=caches)
        for name, caches in VARIANTS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for trial in range(trials + 1):
        coefficients = Coefficients.ramp(steps, 1 + 0.01 * trial, 1 - 0.01 * trial)
        made = {}
        for name, generator in generators.items():
            began = time.perf_counter()
            images = generator.generate(prompts, coefficients)
            scorers.score(images, prompts)
            if trial:
                seconds[name].append(time.perf_counter() - began)
            made[name] = images
        for name, images in made.items():
            assert torch.equal(images, made["none"]), f"{name} changed a pixel"
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--trials", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    prompts = with_seeds(prompt_lists()[0][: options.prompts], seed=0, split="bench")
    rows = {}
    for steps in STEPS:
        seconds = measure(steps, prompts, options.trials)
        rows[steps] = {name: statistics.median(times) for name, times in seconds.items()}
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(
        title=f"ms per trial of {options.prompts} images (share of the time without caches)"
    )
    table.add_column("steps")
    for name in VARIANTS:
        table.add_column(name, justify="right")
    for steps, row in rows.items():
        cells = [f"{1000 * value:.0f} ({value / row['none']:.0%})" for value in row.values()]
        table.add_row(str(steps), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
