"""What is known of diffusers' schedulers by name: which can be preconditioned, which averaged.

Names and declared values only, so that a study is checked without torch.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

AVERAGING = "LCM, TCD, EulerAncestralDiscrete, EulerDiscrete, FlowMatchEulerDiscrete, \
DPMSolverMultistep (dpmsolver++), UniPCMultistep (predict_x0), DDIM, DDPM"
"""The schedulers whose x0 predictions `precondition` can average, in words."""

WORKING = "LCM, TCD, EulerAncestralDiscrete, EulerDiscrete, FlowMatchEulerDiscrete, \
DPMSolverMultistep, UniPCMultistep, DDIM and others that call the network once per step"
"""The schedulers that `precondition` takes, in words."""

X0_IN_OUTPUT = {
    "LCMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
}
"""Their steps return (prev_sample, x0 prediction)."""

X0_FROM_INPUTS = {"FlowMatchEulerDiscreteScheduler", "TCDScheduler"}
"""Their x0 predictions follow from a step's inputs: `step.X0_OF_INPUTS`."""

_STEP = ["model_output", "timestep", "sample"]
_TOKENS = "its samples are tokens, which no number can scale"
_PARALLEL = "parallel pipelines denoise many timesteps at once, without its step"
_STAGES = "it counts its steps anew in every stage"
_REFUSED = {
    "PNDMScheduler": "it calls the network several times per step (13 times for 4 steps)",
    "RePaintScheduler": "it jumps back and forth between timesteps",
    "HeliosScheduler": _STAGES,
    "HeliosDMDScheduler": _STAGES,
    "DDIMParallelScheduler": _PARALLEL,
    "DDPMParallelScheduler": _PARALLEL,
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
}


def refusal(names: Sequence[str], step: Sequence[str], order: int) -> str | None:
    """Why no scheduler of a class can be preconditioned; None if it can.

    `names`: of the class and those that it inherits from. `step`: the parameters of its step;
    empty where it has none. `order`: how often it calls the network per step.
    """
    for name in names:
        if name in _REFUSED:
            return _REFUSED[name]
    if not step:
        return "it has no set_timesteps and step"
    if list(step)[:3] != _STEP:
        return f"its step does not begin with {', '.join(_STEP)}"
    return None if order == 1 else f"it calls the network {order} times per step"


def predicts_x0(names: Collection[str], config: Mapping[str, Any]) -> bool:
    """Whether the steps of such a scheduler make x0 predictions that can be averaged.

    `config`: its whole config; a DPMSolver and a UniPC only do with some settings.
    """
    if "DPMSolverMultistepScheduler" in names:
        return str(config.get("algorithm_type")).endswith("dpmsolver++")
    if "UniPCMultistepScheduler" in names:
        return bool(config.get("predict_x0"))
    return not (X0_IN_OUTPUT | X0_FROM_INPUTS).isdisjoint(names)
