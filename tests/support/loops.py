"""Sampling loops of four steps over each scheduler that averages, with a network that is known."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from qsched.schedule.coefficients import Coefficients

WEIGHTS = (0.3, -0.1, 0.2, 0.6)


SCALED = Coefficients((1.1, 0.9, 1.05, 0.97), (0.95, 1.02, 1.0, 1.03)).averaged(WEIGHTS)


TARGETS = torch.randn(4, 2, 4, 6, 6, generator=torch.Generator().manual_seed(5))
"""What the network predicts as x0 at each step."""


Predicts = Callable[[Any, int, Any, Tensor], Tensor]


def of_sigma(scheduler: Any, i: int, t: Any, x: Tensor) -> Tensor:
    """eps of x = x0 + sigma * eps."""
    sigma: Tensor = scheduler.sigmas[i]
    return (x - TARGETS[i]) / sigma


def of_flow(scheduler: Any, i: int, t: Any, x: Tensor) -> Tensor:
    """The velocity of x = (1 - sigma) * x0 + sigma * noise."""
    sigma: Tensor = scheduler.sigmas[i]
    return (x - TARGETS[i]) / sigma


def of_alphas(scheduler: Any, i: int, t: Any, x: Tensor) -> Tensor:
    """eps of x = sqrt(alpha) * x0 + sqrt(1 - alpha) * eps."""
    alpha: Tensor = scheduler.alphas_cumprod[int(t)]
    return (x - alpha.sqrt() * TARGETS[i]) / (1 - alpha).sqrt()


def velocity(scheduler: Any, i: int, t: Any, x: Tensor) -> Tensor:
    """v = sqrt(alpha) * eps - sqrt(1 - alpha) * x0."""
    alpha: Tensor = scheduler.alphas_cumprod[int(t)]
    eps = of_alphas(scheduler, i, t, x)
    return alpha.sqrt() * eps - (1 - alpha).sqrt() * TARGETS[i]


SCHEDULERS: dict[str, tuple[Callable[[], Any], Predicts, dict[str, Any]]] = {
    "LCM": (LCMScheduler, of_alphas, {}),
    "LCM-v": (lambda: LCMScheduler(prediction_type="v_prediction"), velocity, {}),
    "TCD": (TCDScheduler, of_alphas, {"eta": 0.0}),
    "TCD-eta": (TCDScheduler, of_alphas, {"eta": 0.3}),
    "TCD-v": (lambda: TCDScheduler(prediction_type="v_prediction"), velocity, {"eta": 0.0}),
    "TCD-sample": (
        lambda: TCDScheduler(prediction_type="sample"),
        lambda scheduler, i, t, x: TARGETS[i],
        {"eta": 0.0},
    ),
    "EulerAncestral": (EulerAncestralDiscreteScheduler, of_sigma, {}),
    "Euler": (EulerDiscreteScheduler, of_sigma, {}),
    "FlowMatchEuler": (FlowMatchEulerDiscreteScheduler, of_flow, {}),
    "FlowMatchEuler-stochastic": (
        lambda: FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        of_flow,
        {},
    ),
    "DPMSolver": (
        lambda: DPMSolverMultistepScheduler(final_sigmas_type="zero"),
        of_alphas,
        {},
    ),
    "UniPC": (UniPCMultistepScheduler, of_alphas, {}),
    "DDIM": (lambda: DDIMScheduler(clip_sample=False), of_alphas, {}),
    "DDPM": (lambda: DDPMScheduler(clip_sample=False), of_alphas, {}),
}


def loop(
    scheduler: Any, name: str, *, dtype: torch.dtype = torch.float32, first: int = 0
) -> Tensor:
    """The final latents of four steps."""
    _, predict, options = SCHEDULERS[name]
    scheduler.set_timesteps(4)
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    if "generator" in inspect.signature(scheduler.step).parameters:
        options = {**options, "generator": generator}
    for i, t in list(enumerate(scheduler.timesteps))[first:]:
        output = predict(scheduler, i, t, x.float()).to(dtype)
        x = scheduler.step(output, t, x, return_dict=False, **options)[0]
    return x
