"""When a trial is not worth its remaining prompts: compared with the best one, prompt by prompt.

A trial scores its prompts in a random order of its own. After each batch it is compared with the
best finished trial on the prompts that both have; same prompt, same noise, so the differences are
paired. It stops when its chance to lead after all prompts (`jaq.chance_to_lead`) falls below the
study's `search.stop_below`. The sampler then learns the paired estimate of its value, and it can
never be the best.
"""

from collections.abc import Mapping

import numpy as np

from qsched.seeds import stable_seed
from qsched.statistics import chance_to_lead

SMALLEST = 4
"""Prompts that a trial scores at the least: a deviation of fewer says nothing."""


def order(seed: int, slot: int, prompts: int) -> tuple[int, ...]:
    """The order in which a slot scores its prompts, random but always the same."""
    return tuple(
        sorted(range(prompts), key=lambda prompt: stable_seed("order", seed, slot, prompt))
    )


def estimate(values: Mapping[int, float], best: Mapping[int, float], doubt: float) -> float | None:
    """What a trial would come to that should stop; None for one that should go on.

    `values`: {prompt: its value} of the trial so far. `best`: the same of the best trial, with all
    prompts. The estimate is the best's mean plus the mean difference on the prompts that both have.
    """
    shared = values.keys() & best.keys()
    if len(shared) < SMALLEST or len(shared) == len(best):
        return None
    differences = np.array([values[prompt] - best[prompt] for prompt in sorted(shared)])
    if chance_to_lead(differences, len(best)) >= doubt:
        return None
    return float(np.mean(list(best.values())) + differences.mean())
