"""Tiny twins of real models: the same pipeline class, scheduler and LoRA loading, random weights.

    folder = pipeline_twin("StableDiffusionXLPipeline", lora=True)     # pipeline/, lora/

A twin is written with diffusers' own `save_pretrained`, so what loads it is the code that loads the
real model. Its images are noise of the right shape; it proves that a study runs, not that it helps.
`making` keeps them; the others are the models by their makers, put together from `text` (tokenizers
and text encoders) and `autoencoders`. Begin with `making`.
"""

from qsched.pipelines.twins.lora import FILE as LORA
from qsched.pipelines.twins.making import made, pipeline_twin

__all__ = ["LORA", "made", "pipeline_twin"]
