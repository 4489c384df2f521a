"""What to try next: samplers that propose a vector from a study's trials, its seed and the slot.

`catalog` and `table` are the names and the `[search]` table; `samplers` proposes, on the `box` that
is searched; `nevergrad_sampler` rebuilds Nevergrad's optimizers; `stopping` ends hopeless trials.
Begin with `samplers`.
"""
