"""Quantization-aware preconditioning of a diffusers scheduler (arXiv 2509.01624).

    x_{i+1} = step(c_eps[i] * eps_i, t_i, c_x[i] * x_i)

    pipeline.scheduler = precondition(pipeline.scheduler, Coefficients.ramp(4, 1.1, 0.95))

The network is left alone and still sees the unscaled x_i; alphas, sigmas, timesteps and injected
noise stay as they are. It holds for epsilon, v, sample and flow prediction alike.

The result is an instance of the stock class and a real diffusers config: `from_config`,
`save_pretrained`, `from_pretrained`, deep copies and pickles keep the coefficients. Its class,
`Preconditioned` + the stock class's name, is an attribute of this module that is made on demand,
and a saved pipeline names it so: ["qsched.schedule", "PreconditionedLCMScheduler"].
`DiffusionPipeline.from_pretrained` resolves that in a process that has imported `qsched.schedule`;
in another one it raises a ValueError that says to import it. Two ways lose the coefficients, as
with any scheduler of one's own: a stock class's `from_pretrained` or `from_config` ignores them
(with a warning, and they still stand in its `.config`), and a pipeline that builds its own
scheduler (DDIMPipeline) goes back to stock.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import diffusers
import torch

# diffusers looks for this name in the module of a scheduler that it loads in a pipeline.
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from qsched.coefficients import Coefficients
from qsched.errors import CoefficientsError, ScheduleError

WORKING = "LCM, TCD, EulerAncestralDiscrete, EulerDiscrete, FlowMatchEulerDiscrete, \
DPMSolverMultistep, UniPCMultistep, DDIM and others that call the network once per step"
"""The schedulers that `precondition` takes, in words."""

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
# Schedulers whose timesteps may end with the clean end point 0, where the network isn't called.
_WITH_END_POINT = {"DDPMWuerstchenScheduler", "LTXEulerAncestralRFScheduler", "SCMScheduler"}


def precondition(scheduler: Any, coefficients: Coefficients) -> Any:
    """A scheduler of the same kind and config whose steps are scaled by `coefficients`.

    `scheduler`: any diffusers scheduler with the usual `step(model_output, timestep, sample, ...)`
    that is called once per network call; it is not changed, and the result starts afresh, without
    timesteps. Ones change nothing, to the bit. Preconditioning again replaces the coefficients.
    Setting another number of timesteps than `coefficients.steps` on the result raises
    `CoefficientsError`, stepping outside the schedule `ScheduleError`.

    Raises `ScheduleError` for schedulers that can't be preconditioned (Heun, KDPM2, PNDM ...).
    """
    stock = scheduler.stock if isinstance(scheduler, Preconditioned) else type(scheduler)
    reason = _refusal(stock) or _learns_variance(scheduler)
    if reason:
        raise ScheduleError(f"{stock.__name__}: {reason}; what works: {WORKING}")
    # diffusers takes an argument once left at its default for unset, even where it was changed
    # since (StableDiffusionPipeline changes steps_offset), so the mark is put back afterwards.
    config = copy.deepcopy(dict(scheduler.config))
    defaults = config.pop("_use_default_values", None)
    result = preconditioned_class(stock).from_config(
        config,
        model_coefficients=list(coefficients.model),
        sample_coefficients=list(coefficients.sample),
    )
    if defaults is not None:
        result.register_to_config(_use_default_values=defaults)
    if hasattr(scheduler, "set_shift"):  # the one setting that is in use but not in the config
        result.set_shift(scheduler.shift)
    return result


def coefficients_of(scheduler: Any) -> Coefficients | None:
    """The coefficients that a scheduler's steps use; None if it is not preconditioned."""
    return scheduler.coefficients if isinstance(scheduler, Preconditioned) else None


def preconditioned_class(stock: type) -> Any:
    """The class `qsched.schedule.Preconditioned<stock>`, always the same one for `stock`."""
    name = f"Preconditioned{stock.__name__}"
    if name not in globals():
        summary = f"`{stock.__name__}` with coefficients; see `qsched.schedule.precondition`."
        globals()[name] = type(
            name, (Preconditioned, stock), {"__module__": __name__, "__doc__": summary}
        )
    found = globals()[name]
    if found.stock is not stock:
        raise ScheduleError(
            f"{stock.__module__}.{stock.__name__}: {found.stock.__module__} has a scheduler of the "
            "same name; expected one per process; rename the class"
        )
    return found


class Preconditioned:
    """Mixed into a stock scheduler class, in front: scales what enters its step.

    A subclass `class PreconditionedX(Preconditioned, X)` gets X's own `__init__`, `set_timesteps`
    and `step`, signatures included, with two more config values, `model_coefficients` (c_eps) and
    `sample_coefficients` (c_x): one number per step each. It needs nothing of this module but the
    functions that it names, so a scheduler can be written out as one file that stands alone.
    """

    stock: ClassVar[Any]
    config: Any
    step_index: Any
    timesteps: Any

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
        return Coefficients(self.config.model_coefficients, self.config.sample_coefficients)

    def _scheduled_steps(self) -> int:
        """The number of network calls that the timesteps ask for."""
        timesteps = getattr(self, "timesteps", None)
        if timesteps is None or getattr(self, "num_inference_steps", 0) is None:
            raise ScheduleError(
                f"{type(self).__name__}: no timesteps; expected set_timesteps before step"
            )
        ends_clean = any(base.__name__ in _WITH_END_POINT for base in type(self).__mro__)
        return len(timesteps) - int(ends_clean and float(timesteps[-1]) == 0.0)

    def _pair(self, timestep: Any) -> tuple[float, float]:
        """c_eps and c_x of the step that starts at `timestep`."""
        coefficients = self.coefficients
        coefficients.require_steps(self._scheduled_steps())  # pipelines may assign timesteps
        index = self._index(timestep)
        if not 0 <= index < coefficients.steps:
            raise ScheduleError(
                f"{type(self).__name__}: step {index + 1} of a schedule with {coefficients.steps} "
                "steps; expected one step per timestep; call set_timesteps before sampling again"
            )
        return coefficients.model[index], coefficients.sample[index]

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
    added = ("model_coefficients", "sample_coefficients")

    @functools.wraps(stock.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        missing = [name for name in added if kwargs.get(name) is None]
        if missing:
            raise CoefficientsError(
                f"{type(self).__name__}: no {' and '.join(missing)}; expected one number per step; "
                "use qsched.precondition(scheduler, coefficients)"
            )
        coefficients = Coefficients(*(kwargs.pop(name) for name in added))
        stock.__init__(self, *args, **kwargs)
        self.register_to_config(
            model_coefficients=list(coefficients.model),
            sample_coefficients=list(coefficients.sample),
        )

    # diffusers reads the names of the config values off the signature.
    signature = inspect.signature(stock.__init__)
    parameters = list(signature.parameters.values())
    rest = [parameters.pop()] if parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    new = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in added]
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
        c_eps, c_x = self._pair(timestep)
        return stock.step(
            self, _scaled(model_output, c_eps), timestep, _scaled(sample, c_x), *args, **kwargs
        )

    return step


def _scaled(tensor: Tensor, coefficient: float) -> Tensor:
    """`coefficient * tensor`, of any shape, in the tensor's dtype; at 1 the tensor itself.

    Multiplied in float32 at least: in bfloat16, 1.003 would be 1.
    """
    if coefficient == 1.0:
        return tensor
    return (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * coefficient).to(
        tensor.dtype
    )


def _refusal(stock: type) -> str | None:
    """Why no scheduler of this class can be preconditioned; None if it can."""
    for base in stock.__mro__:
        if base.__name__ in _REFUSED:
            return _REFUSED[base.__name__]
    if not issubclass(stock, SchedulerMixin):
        return "it is no diffusers scheduler"
    step = getattr(stock, "step", None)
    if not hasattr(stock, "set_timesteps") or step is None:
        return "it has no set_timesteps and step"
    if list(inspect.signature(step).parameters)[1:4] != _STEP:
        return f"its step does not begin with {', '.join(_STEP)}"
    order = getattr(stock, "order", 1)
    return None if order == 1 else f"it calls the network {order} times per step"


def _learns_variance(scheduler: Any) -> str | None:
    """A learned variance, stacked on eps in the model output, must not be scaled with it."""
    rule = inspect.signature(getattr(scheduler, "_get_variance", lambda: None))
    learned = str(scheduler.config.get("variance_type")).startswith("learned")
    if learned and "predicted_variance" in rule.parameters:
        return "its network predicts the injected noise's variance (variance_type = learned)"
    return None


def _stock_class(name: str) -> Any:
    """The scheduler class of this name: diffusers' own, or one that was imported."""
    classes = [getattr(diffusers, name, None), *_descendants(SchedulerMixin)]
    return next((c for c in classes if isinstance(c, type) and c.__name__ == name), None)


def _descendants(parent: type) -> list[type]:
    children: list[type] = parent.__subclasses__()
    return children + [grandchild for child in children for grandchild in _descendants(child)]


def __getattr__(name: str) -> Any:
    """Makes `Preconditioned<Stock>` where a saved pipeline, a pickle or a person asks for it."""
    if name.startswith("Preconditioned"):
        stock = _stock_class(name.removeprefix("Preconditioned"))
        if stock is not None and not _refusal(stock):
            return preconditioned_class(stock)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
