"""What a trial costs beside plain diffusers and a plain scoring loop: one run, same pixels.

    python -m bench.trial_cost [--prompts 32] [--trials 9] [--json]

A trial here is generating and scoring the calibration images of the demo model, as a worker does.
`plain` calls the pipeline itself, with the same scheduler, and encodes every caption anew for the
scorer; `ours` is ImageGenerator and Scorers with their caches. Both take turns trial by trial with
the same coefficients, so a slow moment of the machine hits both; figures are medians. The first
trial, which fills the caches, isn't counted. The time is taken apart by a clock around the
denoiser, the autoencoder and the scorers. The bench fails if a pixel differs.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from qsched.demo.captions import prompt_lists
from qsched.pipelines.catalog import model_entry
from qsched.pipelines.generator import ImageGenerator
from qsched.pipelines.loading import denoiser, load_pipeline
from qsched.pipelines.table import Sampling, sampling_of
from qsched.prompts import Prompt, with_seeds
from qsched.quantization.quantize import quantize
from qsched.schedule.coefficients import Coefficients
from qsched.schedule.preconditioning import precondition
from qsched.scoring.scorers import load_scorers

STEPS = (1, 2, 4, 8)
BATCH = 16
SCORERS = ("demo-alignment", "demo-quality")


class Clock:
    """Seconds by part: `timed(part, function)` is the function with a clock around it."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*arguments: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                spent = time.perf_counter() - began
                self.parts[part] = self.parts.get(part, 0.0) + spent

        return clocked


def measure(steps: int, prompts: Sequence[Prompt], trials: int) -> dict[str, dict[str, float]]:
    """{"plain" or "ours": {part: median seconds}}. AssertionError if a pixel differs."""
    entry = model_entry("demo")
    pipeline = load_pipeline("demo")
    network = denoiser(pipeline, entry.part)
    quantize(network, "w4a4", skip=())
    sampling = sampling_of("demo", Sampling(steps=steps))
    generator = ImageGenerator(pipeline, sampling, part=entry.part, batch_size=BATCH)
    clock = Clock()
    network.forward = clock.timed("network", network.forward)
    pipeline.vae.decode = clock.timed("decoding", pipeline.vae.decode)
    stock = pipeline.scheduler

    def plain(coefficients: Coefficients) -> Tensor:
        scorers = load_scorers(SCORERS)  # not timed: a person would have them loaded
        batches = []
        clock.parts.clear()
        began = time.perf_counter()
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            pipeline.scheduler = precondition(stock, coefficients)
            images = pipeline(
                prompt=[prompt.text for prompt in batch],
                generator=[torch.Generator().manual_seed(prompt.seed) for prompt in batch],
                output_type="pt",
                **sampling.arguments(),
            ).images
            clock.timed("scoring", scorers.score)(images, batch)
            batches.append(images)
        clock.parts["trial"] = time.perf_counter() - began
        pipeline.scheduler = stock
        return torch.cat(batches)

    scorers = load_scorers(SCORERS)

    def ours(coefficients: Coefficients) -> Tensor:
        batches = []
        clock.parts.clear()
        began = time.perf_counter()
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            images = generator.generate(batch, coefficients)
            clock.timed("scoring", scorers.score)(images, batch)
            batches.append(images)
        clock.parts["trial"] = time.perf_counter() - began
        return torch.cat(batches)

    seconds: dict[str, dict[str, list[float]]] = {"plain": {}, "ours": {}}
    for trial in range(trials + 1):
        coefficients = Coefficients.ramp(steps, 1 + 0.01 * trial, 1 - 0.01 * trial)
        made = {}
        for name, way in (("plain", plain), ("ours", ours)):
            made[name] = way(coefficients)
            if trial:
                for part in ("network", "decoding", "scoring", "trial"):
                    seconds[name].setdefault(part, []).append(clock.parts.get(part, 0.0))
        assert torch.equal(made["plain"], made["ours"]), "the caches changed a pixel"
    return {
        name: {part: statistics.median(times) for part, times in parts.items()}
        for name, parts in seconds.items()
    }


def figures(steps: int, row: dict[str, dict[str, float]]) -> dict[str, float]:
    """What the table shows of one number of steps."""
    plain, ours = row["plain"], row["ours"]
    parts = ours["network"] + ours["decoding"] + ours["scoring"]
    return {
        "plain_ms": 1000 * plain["trial"],
        "ours_ms": 1000 * ours["trial"],
        "ratio": ours["trial"] / plain["trial"],
        "network_ratio": ours["network"] / plain["network"],
        "network_limit": (steps - 1) / steps,
        "rest_share": (ours["trial"] - parts) / ours["trial"],
        "network_ms": 1000 * ours["network"],
        "decoding_ms": 1000 * ours["decoding"],
        "scoring_ms": 1000 * ours["scoring"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--trials", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    prompts = with_seeds(prompt_lists()[0][: options.prompts], seed=0, split="bench")
    rows = {steps: figures(steps, measure(steps, prompts, options.trials)) for steps in STEPS}
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(title=f"a trial of {options.prompts} images, ms")
    for heading in (
        *("steps", "plain", "ours", "ours / plain", "network: ours / plain", "limit"),
        *("network", "decoding", "scoring", "rest"),
    ):
        table.add_column(heading, justify="right")
    for steps, row in rows.items():
        table.add_row(
            str(steps),
            f"{row['plain_ms']:.0f}",
            f"{row['ours_ms']:.0f}",
            f"{row['ratio']:.0%}",
            f"{row['network_ratio']:.1%}",
            f"{row['network_limit']:.1%}",
            f"{row['network_ms']:.0f}",
            f"{row['decoding_ms']:.0f}",
            f"{row['scoring_ms']:.0f}",
            f"{row['rest_share']:.1%}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
