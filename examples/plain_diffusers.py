"""Samples a pipeline with an exported scheduler. Needs diffusers, and no qsched.

python examples/plain_diffusers.py calibrated/scheduler PIPELINE CAPTION IMAGE.png
"""

import sys

import torch
from diffusers import AutoModel, DiffusionPipeline

scheduler, folder, caption, file = sys.argv[1:]
missing = {"text_encoder_3": None, "tokenizer_3": None}  # the demo model is an SD 3 without T5
pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, **missing)
pipeline.scheduler = AutoModel.from_pretrained(scheduler, trust_remote_code=True)
print("c_eps, c_x:", pipeline.scheduler.coefficients)
# The coefficients belong to the quantized network: the exported README.md shows how to quantize it.
image = pipeline(
    caption,
    num_inference_steps=len(pipeline.scheduler.config.model_coefficients),
    guidance_scale=0.0,
    height=64,
    width=64,
    max_sequence_length=0,
    generator=torch.Generator().manual_seed(0),
).images[0]
image.save(file)
