"""What an image of a trial of 4 prompts costs, where trials share a batch and where they don't.

    python -m bench.trial_cost.batches [--rounds 3] [--json]

The same 16 prompts three ways: 4 trials of 4 prompts in one batch of 16, one trial of 16 prompts in
one batch, and 4 trials of 4 in batches of their own. They take turns in one process, with other
coefficients in each round, so a slow moment of the machine hits all; figures are medians. The first
round, which fills the caches, isn't counted. `rows` are the images' rows that went through the
network. Images are generated, not scored. The bench fails if a pixel differs from those of each
trial alone, in batches of 16 as in those of 4.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.printing import Table, show
from qsched.demo.captions import prompt_lists
from qsched.pipelines.catalog import model_entry
from qsched.pipelines.generator import ImageGenerator
from qsched.pipelines.loading import denoiser, load_pipeline
from qsched.pipelines.table import Sampling, sampling_of
from qsched.prompts import with_seeds
from qsched.quantization.quantize import quantize
from qsched.schedule.coefficients import Coefficients

STEPS = (1, 2, 4, 8)
TRIALS, EACH = 4, 4
IMAGES = TRIALS * EACH


class Rows:
    """Counts the rows that a network's forward is given."""

    def __init__(self, network: Any) -> None:
        self.seen = 0
        self._forward = network.forward
        network.forward = self

    def __call__(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        self.seen += len(hidden_states)
        return self._forward(hidden_states, **kwargs)


class Ways:
    """The three ways of making the same 16 images of 4 trials, or of one trial."""

    def __init__(self, steps: int) -> None:
        entry = model_entry("demo")
        pipeline = load_pipeline("demo")
        network = denoiser(pipeline, entry.part)
        quantize(network, "w4a4", skip=())
        self.rows = Rows(network)
        self._prompts = with_seeds(prompt_lists()[0][:IMAGES], seed=0, split="bench")
        self._sixteen, self._four = (
            ImageGenerator(
                pipeline,
                sampling_of("demo", Sampling(steps=steps)),
                part=entry.part,
                batch_size=size,
            )
            for size in (IMAGES, EACH)
        )

    def shared(self, trials: list[Coefficients]) -> Tensor:
        own = [each for each in trials for _ in range(EACH)]
        return self._sixteen.generate(self._prompts, own)

    def one_trial(self, trials: list[Coefficients]) -> Tensor:
        return self._sixteen.generate(self._prompts, trials[0])

    def apart(self, trials: list[Coefficients]) -> Tensor:
        return self._by_trial(self._four, trials)

    def require_same_pixels(self, trials: list[Coefficients]) -> None:
        """AssertionError unless an image of the shared batch is what it is by its trial alone."""
        shared = self.shared(trials)
        assert torch.equal(shared, self._by_trial(self._sixteen, trials)), "in padded batches of 16"
        assert torch.equal(shared, self.apart(trials)), "in batches of 4"
        assert torch.equal(shared[:EACH], self.one_trial(trials)[:EACH]), "beside other images"
        assert not torch.equal(shared[EACH:], self.one_trial(trials)[EACH:])

    def _by_trial(self, generator: ImageGenerator, trials: list[Coefficients]) -> Tensor:
        batches = [
            generator.generate(self._prompts[k * EACH : (k + 1) * EACH], each)
            for k, each in enumerate(trials)
        ]
        return torch.cat(batches)


def coefficients(steps: int, turn: int) -> list[Coefficients]:
    """Of the trials of a round, which no other round has."""
    shifts = [0.003 * (TRIALS * turn + k + 1) for k in range(TRIALS)]
    return [Coefficients.constant(steps, 1 + shift, 1 - shift) for shift in shifts]


def measure(steps: int, rounds: int) -> dict[str, Any]:
    """A line of the table: medians of `rounds`."""
    ways = Ways(steps)
    ways.require_same_pixels(coefficients(steps, 0))
    named: dict[str, Callable[[list[Coefficients]], Tensor]] = {
        f"{TRIALS} trials x {EACH}, one batch": ways.shared,
        f"1 trial x {IMAGES}": ways.one_trial,
        f"{TRIALS} trials x {EACH}, apart": ways.apart,
    }
    times: dict[str, list[float]] = {name: [] for name in named}
    rows: dict[str, int] = {}
    for turn in range(1, rounds + 1):
        trials = coefficients(steps, turn)
        for name, way in named.items():
            before, began = ways.rows.seen, time.perf_counter()
            way(trials)
            times[name].append(time.perf_counter() - began)
            rows[name] = ways.rows.seen - before
    found: dict[str, Any] = {"steps": steps}
    for name in named:
        found[f"{name}: ms an image"] = f"{1000 * statistics.median(times[name]) / IMAGES:.1f}"
        found[f"{name}: rows an image"] = f"{rows[name] / IMAGES:g}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    table: Table = [measure(steps, options.rounds) for steps in STEPS]
    show({f"{IMAGES} images of the demo at w4a4": table}, as_json=options.json)


if __name__ == "__main__":
    main()
