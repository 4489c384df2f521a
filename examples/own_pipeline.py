"""A pipeline of your own: what a study calls by `name = "own_pipeline:pipeline"`, and by itself.

python examples/own_pipeline.py crab.png
"""

import sys
from typing import Any

import torch

import qsched


def pipeline() -> Any:
    """Any diffusers pipeline; its network may be quantized already. Here: the demo model's."""
    return qsched.load_pipeline("demo")


if __name__ == "__main__":
    model = pipeline()
    coefficients = qsched.Coefficients.ramp(4, 1.05, 0.97)  # c_eps and c_x of the first step
    model.scheduler = qsched.precondition(model.scheduler, coefficients)
    image = model(
        "a large shaded crab on a teal background",
        num_inference_steps=4,
        guidance_scale=0.0,
        height=64,
        width=64,
        max_sequence_length=0,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    image.save(sys.argv[1])
