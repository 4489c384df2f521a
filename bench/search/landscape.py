"""What a ramp does to the demo model: differences to the unmodified schedule, on prompts and noise
that neither the demo's search nor its proof uses.

    python -m bench.search.landscape --scheme w4a4
"""

import argparse
from itertools import product

import numpy as np
import torch
from torch import Tensor

from qsched.demo.captions import prompt_lists
from qsched.pipelines.catalog import model_entry
from qsched.pipelines.generator import ImageGenerator
from qsched.pipelines.loading import denoiser, load_pipeline
from qsched.pipelines.table import Sampling, sampling_of
from qsched.prompts import with_seeds
from qsched.quantization.quantize import quantize
from qsched.schedule.coefficients import Coefficients
from qsched.scoring.scorers import load_scorers

STEPS = 4
PROMPTS = 64
FACTORS = (0.8, 0.9, 1.0, 1.1, 1.2)


def contrast(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N,): the pixels' deviation from the image's mean."""
    return images.flatten(1).std(dim=1)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scheme", default="w4a4")
    scheme = parser.parse_args().scheme
    entry = model_entry("demo")
    sampling = sampling_of("demo", Sampling(steps=STEPS))
    prompts = with_seeds(prompt_lists()[0][:PROMPTS], seed=5, split="landscape")
    scorers = load_scorers(["demo-alignment", "demo-quality", "similarity"])

    pipeline = load_pipeline("demo")
    full = ImageGenerator(pipeline, sampling).generate(prompts, Coefficients.identity(STEPS))
    quantize(denoiser(pipeline, entry.part), scheme, skip=())
    generator = ImageGenerator(pipeline, sampling)

    def judged(coefficients: Coefficients) -> dict[str, float]:
        images = generator.generate(prompts, coefficients)
        scores = scorers.score(images, prompts, full)
        scores["contrast"] = (contrast(images) / contrast(full)).tolist()
        return {name: float(np.mean(values)) for name, values in scores.items()}

    with torch.inference_mode():
        base = judged(Coefficients.identity(STEPS))
        print(f"{scheme}, unmodified: {' '.join(f'{k} {v:.4f}' for k, v in base.items())}")
        print("| c_eps, c_x | " + " | ".join(base) + " |")
        print("|---" * (1 + len(base)) + "|")
        for first in product(FACTORS, FACTORS):
            found = judged(Coefficients.ramp(STEPS, *first))
            row = " | ".join(f"{found[name] - base[name]:+.4f}" for name in base)
            print(f"| {first[0]}, {first[1]} | {row} |", flush=True)


if __name__ == "__main__":
    main()
