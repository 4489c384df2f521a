"""Whether a pipeline is one that can be calibrated, and takes what a study says.

`settings` compares a study with the classes of its pipeline and scheduler, before anything is
loaded and after; `kinds` tells a text-to-image class with one denoiser from all others.
"""
