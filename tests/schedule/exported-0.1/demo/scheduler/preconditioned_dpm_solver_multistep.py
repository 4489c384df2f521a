# Copyright the qsched authors. Licensed under the Apache License, Version 2.0:
# https://www.apache.org/licenses/LICENSE-2.0
"""`DPMSolverMultistepScheduler` with Q-Sched's coefficients (arXiv 2509.01624), without qsched.

    x_{i+1} = step(c_eps[i] * eps_i, t_i, c_x[i] * x_i)

    pipeline.scheduler = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)

FOLDER holds this file, scheduler_config.json with the coefficients, and config.json, which leads
diffusers here. The stock class's own `from_pretrained(FOLDER)` loads a scheduler without them.
Written by qsched 0.1.0.
"""

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DPMSolverMultistepScheduler as Stock
from torch import Tensor

_SOURCE = Path(__file__).read_bytes()


class CoefficientsError(Exception):
    """Coefficients, bounds, a search vector or a coefficients file break their contract."""


class ScheduleError(Exception):
    """A scheduler cannot be preconditioned, or is stepped outside its schedule."""


@dataclass(frozen=True)
class Coefficients:
    """c_eps (`model`) and c_x (`sample`) of every step; the weights of an x0 average, or ()."""

    model: Sequence[float]
    sample: Sequence[float]
    average: Sequence[float] = ()

    @property
    def steps(self) -> int:
        """The number of denoising steps that these coefficients are for."""
        return len(self.model)

    def require_steps(self, steps: int) -> None:
        """Raises `CoefficientsError` unless a schedule of `steps` steps is what these are for."""
        if steps != self.steps:
            raise CoefficientsError(
                f"coefficients are for {self.steps} steps, the schedule has {steps}; "
                f"sample with {self.steps} steps, or calibrate for {steps}"
            )


# Schedulers whose timesteps may end with the clean end point 0, where the network isn't called.
_WITH_END_POINT = {"DDPMWuerstchenScheduler", "LTXEulerAncestralRFScheduler", "SCMScheduler"}


class Preconditioned:
    """Mixed into a stock scheduler class, in front: scales what enters its step.

    A subclass `class PreconditionedX(Preconditioned, X)` gets X's own `__init__`, `set_timesteps`
    and `step`, signatures included, with three more config values: `model_coefficients` (c_eps),
    `sample_coefficients` (c_x) and, where there is an average, `average_weights`: one number per
    step each.
    """

    stock: ClassVar[Any]
    config: Any
    step_index: Any
    timesteps: Any
    _averaged: "tuple[float, Tensor | float]" = (0.0, 0.0)
    """The weights of the x0 predictions so far, and their weighted sum."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Preconditioned in cls.__bases__:
            cls.stock = next(base for base in cls.__mro__ if not issubclass(base, Preconditioned))
            for wrap in (_constructor, _set_timesteps, _step):
                method = wrap(cls.stock)
                setattr(cls, method.__name__, method)

    @property
    def coefficients(self) -> Coefficients:
        """The coefficients in use: those of the config."""
        return Coefficients(
            self.config.model_coefficients,
            self.config.sample_coefficients,
            self.config.get("average_weights") or (),
        )

    def _scheduled_steps(self) -> int:
        """The number of network calls that the timesteps ask for."""
        timesteps = getattr(self, "timesteps", None)
        if timesteps is None or getattr(self, "num_inference_steps", 0) is None:
            raise ScheduleError(
                f"{type(self).__name__}: no timesteps; expected set_timesteps before step"
            )
        ends_clean = any(base.__name__ in _WITH_END_POINT for base in type(self).__mro__)
        return len(timesteps) - int(ends_clean and float(timesteps[-1]) == 0.0)

    def _place_in(self, timestep: Any) -> "tuple[Coefficients, int]":
        """The coefficients, and the index of the step that starts at `timestep`."""
        coefficients = self.coefficients
        coefficients.require_steps(self._scheduled_steps())  # pipelines may assign timesteps
        index = self._index(timestep)
        if not 0 <= index < coefficients.steps:
            raise ScheduleError(
                f"{type(self).__name__}: step {index + 1} of a schedule with {coefficients.steps} "
                "steps; expected one step per timestep; call set_timesteps before sampling again"
            )
        return coefficients, index

    def _average(self, output: Any, x0: Tensor, weights: tuple[float, ...], index: int) -> Any:
        """A step's output; of the last step, with the average in place of its sample."""
        used, total = self._averaged if index else (0.0, 0.0)
        if index < len(weights) - 1:
            self._averaged = used + weights[index], total + weights[index] * x0.float()
            return output
        self._averaged = (0.0, 0.0)
        # Steps that an image-to-image pipeline skipped leave their weights to the last one.
        last = output[0]
        result = (total + (1.0 - used) * last.float()).to(last.dtype)
        if isinstance(output, tuple):
            return (result, *output[1:])
        output.prev_sample = result
        return output

    def _index(self, timestep: Any) -> int:
        """The step's place in the schedule, by the scheduler's own rule where it has one.

        The rule decides which of two equal timesteps is meant, and where an image-to-image
        pipeline begins. Schedulers without any (DDIM, DDPM) keep no count: the timestep tells.
        """
        index: int | None = getattr(self, "step_index", None)
        if index is None and hasattr(self, "_init_step_index"):
            try:
                self._init_step_index(timestep)
            except IndexError:
                raise self._unscheduled(timestep) from None
            index = self.step_index
        if index is None:
            index = getattr(self, "begin_index", None)
        return self._place(timestep) if index is None else index

    def _place(self, timestep: Any) -> int:
        value = torch.as_tensor(timestep).flatten()[:1].to(self.timesteps.device)
        timesteps = self.timesteps.to(value.dtype) if value.is_floating_point() else self.timesteps
        places = (timesteps == value).nonzero().flatten().tolist()  # Stable Cascade rounds its t
        if len(places) != 1:
            raise self._unscheduled(timestep)
        return int(places[0])

    def _unscheduled(self, timestep: Any) -> ScheduleError:
        value = torch.as_tensor(timestep).flatten()[0].item()
        return ScheduleError(
            f"{type(self).__name__}: timestep {value:g}; expected one that the schedule has once; "
            "pass the values of scheduler.timesteps in turn"
        )


def _constructor(stock: Any) -> Callable[..., None]:
    """Stock's constructor with the coefficients as two more config values."""
    required = ("model_coefficients", "sample_coefficients")

    @functools.wraps(stock.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        missing = [name for name in required if kwargs.get(name) is None]
        if missing:
            raise CoefficientsError(
                f"{type(self).__name__}: no {' and '.join(missing)}; expected one number per step; "
                "use qsched.precondition(scheduler, coefficients)"
            )
        model, sample = (kwargs.pop(name) for name in required)
        coefficients = Coefficients(model, sample, kwargs.pop("average_weights", None) or ())
        stock.__init__(self, *args, **kwargs)
        self.register_to_config(
            model_coefficients=list(coefficients.model),
            sample_coefficients=list(coefficients.sample),
            average_weights=list(coefficients.average) or None,
        )

    # diffusers reads the names of the config values off the signature.
    signature = inspect.signature(stock.__init__)
    parameters = list(signature.parameters.values())
    rest = [parameters.pop()] if parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    keyword = inspect.Parameter.KEYWORD_ONLY
    new = [inspect.Parameter(name, keyword) for name in required]
    new.append(inspect.Parameter("average_weights", keyword, default=None))
    __init__.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*parameters, *new, *rest]
    )
    return __init__


def _set_timesteps(stock: Any) -> Callable[..., None]:
    """Stock's set_timesteps, which the number of coefficients must fit."""

    @functools.wraps(stock.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        stock.set_timesteps(self, *args, **kwargs)
        if "model_coefficients" in self.config:  # not yet, where the stock constructor calls this
            self.coefficients.require_steps(self._scheduled_steps())

    return set_timesteps


def _step(stock: Any) -> Callable[..., Any]:
    """Stock's step between scaled tensors."""

    @functools.wraps(stock.step)
    def step(
        self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        coefficients, index = self._place_in(timestep)
        eps = _scaled(model_output, coefficients.model[index])
        x = _scaled(sample, coefficients.sample[index])
        if not coefficients.average:
            return stock.step(self, eps, timestep, x, *args, **kwargs)
        predict = _x0_of_inputs(self, index)
        x0 = predict(eps, timestep, x) if predict else None
        output = stock.step(self, eps, timestep, x, *args, **kwargs)
        if x0 is None:
            x0 = self.model_outputs[-1] if hasattr(self, "model_outputs") else output[1]
        return self._average(output, x0, coefficients.average, index)

    return step


def _x0_of_inputs(scheduler: Any, index: int) -> Callable[..., Tensor] | None:
    """How to predict x0 from a step's inputs, for schedulers whose step keeps it to itself."""
    names = {base.__name__ for base in type(scheduler).__mro__}
    if "FlowMatchEulerDiscreteScheduler" in names:
        sigma: Tensor = scheduler.sigmas[index]
        return lambda v, timestep, x: x.float() - sigma.to(x.device) * v.float()
    if "TCDScheduler" not in names:
        return None

    def predict(output: Tensor, timestep: Any, x: Tensor) -> Tensor:
        alpha: Tensor = scheduler.alphas_cumprod[int(timestep)].to(x.device)
        kind, output, x = scheduler.config.prediction_type, output.float(), x.float()
        if kind == "sample":
            return output
        if kind == "v_prediction":
            return alpha.sqrt() * x - (1 - alpha).sqrt() * output
        return (x - (1 - alpha).sqrt() * output) / alpha.sqrt()

    return predict


def _scaled(tensor: Tensor, coefficient: float) -> Tensor:
    """`coefficient * tensor`, of any shape, in the tensor's dtype; at 1 the tensor itself.

    Multiplied in float32 at least: in bfloat16, 1.003 would be 1.
    """
    if coefficient == 1.0:
        return tensor
    return (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * coefficient).to(
        tensor.dtype
    )


class PreconditionedDPMSolverMultistepScheduler(Preconditioned, Stock):
    """The stock scheduler with coefficients. Saved alone or in a pipeline, it brings this file."""

    # In a saved pipeline, model_index.json names the file in the scheduler's folder by this.
    __module__ = "preconditioned_dpm_solver_multistep"

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes scheduler_config.json, config.json and this file."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        name, module = type(self).__name__, type(self).__module__
        (folder / f"{module}.py").write_bytes(_SOURCE)
        config = {"_class_name": name, "auto_map": {"AutoModel": f"{module}.{name}"}}
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        super().save_config(save_directory, push_to_hub, **kwargs)
