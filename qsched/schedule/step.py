"""A scheduler's step between scaled tensors, and the average of its x0 predictions.

    x_{i+1} = step(c_eps[i] * eps_i, t_i, c_x[i] * x_i)          (arXiv 2509.01624)
    image   = decode(sum_i w[i] * x0_i)                          x0_i: step i's guess of the end

    class PreconditionedLCMScheduler(Preconditioned, LCMScheduler): ...

Needs torch and nothing else: an exported scheduler is this file, word for word, and such a class.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

Series = tuple[float, ...]
"""A number for each step."""


class Used(NamedTuple):
    """c_eps (`model`) and c_x (`sample`) of every step; the weights of an x0 average, or ()."""

    model: Series
    sample: Series
    average: Series = ()


# Schedulers whose timesteps may end with the clean end point 0, where the network isn't called.
_WITH_END_POINT = {"DDPMWuerstchenScheduler", "LTXEulerAncestralRFScheduler", "SCMScheduler"}


class Preconditioned:
    """Mixed into a stock scheduler class, in front: scales what enters its step.

    A subclass `class PreconditionedX(Preconditioned, X)` gets X's own `__init__`, `set_timesteps`
    and `step`, signatures included, with three more config values: `model_coefficients` (c_eps),
    `sample_coefficients` (c_x) and, where there is an average, `average_weights`: one number per
    step each. `coefficients_error` is raised for coefficients that are missing or for another
    number of steps, `schedule_error` for steps outside the schedule.
    """

    stock: ClassVar[Any]
    coefficients_error: ClassVar[type[Exception]] = ValueError
    schedule_error: ClassVar[type[Exception]] = ValueError
    config: Any
    step_index: Any
    timesteps: Any
    _averaged: "tuple[float, Tensor | float]" = (0.0, 0.0)
    """The weights of the x0 predictions so far, and their weighted sum."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Preconditioned in cls.__bases__:  # not again in a subclass of such a class
            cls.stock = next(base for base in cls.__mro__ if not issubclass(base, Preconditioned))
            for wrap in (_constructor, _set_timesteps, _step):
                method = wrap(cls.stock)
                setattr(cls, method.__name__, method)
            if not hasattr(cls.stock, "scale_model_input"):
                # BriaPipeline asks it of every class but the very one that has none.
                cls.scale_model_input = _unscaled  # type: ignore[attr-defined]

    @staticmethod
    def accepted(
        model: Sequence[float], sample: Sequence[float], average: Sequence[float]
    ) -> tuple[Series, Series, Series]:
        """The coefficients as they go into the config; a class may refuse what it is given."""
        return tuple(model), tuple(sample), tuple(average)

    @property
    def coefficients(self) -> Any:
        """What the steps use, as `model`, `sample` and `average`; a stock scheduler has none."""
        config = self.config
        average = config.get("average_weights") or ()
        return Used(
            tuple(config.model_coefficients), tuple(config.sample_coefficients), tuple(average)
        )

    def _scheduled_steps(self) -> int:
        """The number of network calls that the timesteps ask for."""
        timesteps = getattr(self, "timesteps", None)
        if timesteps is None or getattr(self, "num_inference_steps", 0) is None:
            raise self.schedule_error(
                f"{type(self).__name__}: no timesteps; expected set_timesteps before step"
            )
        ends_clean = any(base.__name__ in _WITH_END_POINT for base in type(self).__mro__)
        return len(timesteps) - int(ends_clean and float(timesteps[-1]) == 0.0)

    def _require_steps(self) -> int:
        """The number of steps, if the schedule has as many as the coefficients are for."""
        steps, scheduled = len(self.config.model_coefficients), self._scheduled_steps()
        if scheduled != steps:
            raise self.coefficients_error(
                f"coefficients are for {steps} steps, the schedule has {scheduled}; "
                f"sample with {steps} steps, or calibrate for {scheduled}"
            )
        return steps

    def _step_at(self, timestep: Any) -> int:
        """The index of the step that starts at `timestep`."""
        steps = self._require_steps()  # again, since pipelines may assign timesteps
        index = self._index(timestep)
        if not 0 <= index < steps:
            raise self.schedule_error(
                f"{type(self).__name__}: step {index + 1} of a schedule with {steps} steps; "
                "expected one step per timestep; call set_timesteps before sampling again"
            )
        return index

    def _average(self, output: Any, x0: Tensor, weights: Sequence[float], index: int) -> Any:
        """A step's output; of the last step, with the average in place of its sample."""
        used, total = self._averaged if index else (0.0, 0.0)
        if index < len(weights) - 1:
            self._averaged = used + weights[index], total + weights[index] * x0.float()
            return output
        self._averaged = (0.0, 0.0)
        # Steps that an image-to-image pipeline skipped leave their weights to the last one.
        last = output[0]
        return with_sample(output, (total + (1.0 - used) * last.float()).to(last.dtype))

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

    def _unscheduled(self, timestep: Any) -> Exception:
        value = torch.as_tensor(timestep).flatten()[0].item()
        return self.schedule_error(
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
            raise self.coefficients_error(
                f"{type(self).__name__}: no {' and '.join(missing)}; expected one number per step; "
                "use qsched.precondition(scheduler, coefficients)"
            )
        model, sample = (kwargs.pop(name) for name in required)
        model, sample, average = self.accepted(
            model, sample, kwargs.pop("average_weights", None) or ()
        )
        stock.__init__(self, *args, **kwargs)
        self.register_to_config(
            model_coefficients=list(model),
            sample_coefficients=list(sample),
            average_weights=list(average) or None,
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
            self._require_steps()

    return set_timesteps


def _step(stock: Any) -> Callable[..., Any]:
    """Stock's step between scaled tensors."""

    @functools.wraps(stock.step)
    def step(
        self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        index = self._step_at(timestep)
        eps = _scaled(model_output, self.config.model_coefficients[index])
        x = _scaled(sample, self.config.sample_coefficients[index])
        weights = self.config.get("average_weights")
        if not weights:
            return stock.step(self, eps, timestep, x, *args, **kwargs)
        names = [base.__name__ for base in type(self).__mro__]
        predict = next((X0_OF_INPUTS[name] for name in names if name in X0_OF_INPUTS), None)
        x0 = predict(self, index, timestep, eps, x) if predict else None
        output = stock.step(self, eps, timestep, x, *args, **kwargs)
        if x0 is None:
            x0 = self.model_outputs[-1] if hasattr(self, "model_outputs") else output[1]
        return self._average(output, x0, weights, index)

    return step


def with_sample(output: Any, sample: Tensor) -> Any:
    """A step's output with another sample; LCM's last one holds it twice, and that is decoded."""
    last = output[0]
    if isinstance(output, tuple):
        return tuple(sample if part is last else part for part in output)
    return type(output)(**{k: sample if part is last else part for k, part in output.items()})


def _x0_of_flow(scheduler: Any, index: int, timestep: Any, v: Tensor, x: Tensor) -> Tensor:
    sigma: Tensor = scheduler.sigmas[index]
    return x.float() - sigma.to(x.device) * v.float()


def _x0_of_tcd(scheduler: Any, index: int, timestep: Any, output: Tensor, x: Tensor) -> Tensor:
    alpha: Tensor = scheduler.alphas_cumprod[int(timestep)].to(x.device)
    kind, output, x = scheduler.config.prediction_type, output.float(), x.float()
    if kind == "sample":
        return output
    if kind == "v_prediction":
        return alpha.sqrt() * x - (1 - alpha).sqrt() * output
    return (x - (1 - alpha).sqrt() * output) / alpha.sqrt()


X0_OF_INPUTS: dict[str, Callable[..., Tensor]] = {
    "FlowMatchEulerDiscreteScheduler": _x0_of_flow,
    "TCDScheduler": _x0_of_tcd,
}
"""How to predict x0 from a step's inputs, for schedulers whose step keeps it to itself. Multistep
solvers keep it in model_outputs; others return it beside the sample."""


def _unscaled(self: Any, sample: Tensor, timestep: Any = None) -> Tensor:
    return sample


def _scaled(tensor: Tensor, coefficient: float) -> Tensor:
    """`coefficient * tensor`, of any shape, in the tensor's dtype; at 1 the tensor itself.

    Multiplied in float32 at least: in bfloat16, 1.003 would be 1.
    """
    if coefficient == 1.0:
        return tensor
    return (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * coefficient).to(
        tensor.dtype
    )
