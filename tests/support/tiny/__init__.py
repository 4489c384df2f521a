"""Tiny pipelines of diffusers' text-to-image classes, with random weights. Begin with `classes`."""
