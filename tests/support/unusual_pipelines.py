"""Tiny pipelines whose parts pass more than tensors of one row an image."""

from diffusers import DiffusionPipeline

from qsched.pipelines.twins import pipeline_twin


def qwen_image() -> DiffusionPipeline:
    """Embeddings padded to the longest caption of a batch; a mask that is None without padding."""
    return _loaded("QwenImagePipeline")


def z_image() -> DiffusionPipeline:
    """Embeddings, the denoiser's inputs and its outputs are lists with a tensor for each image."""
    return _loaded("ZImagePipeline")


def _loaded(name: str) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(pipeline_twin(name) / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
