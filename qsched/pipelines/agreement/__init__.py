"""Whether a pipeline is one that can be calibrated, and takes what a study says.

`settings` compares a study with the classes of its pipeline and scheduler, before anything is
loaded and after, with `places` for its folders and files and `schedulers` for its scheduler;
`kinds` tells a text-to-image class with one denoiser from all others. Begin with `settings`.
"""
