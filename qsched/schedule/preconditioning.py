"""Quantization-aware preconditioning of a diffusers scheduler (arXiv 2509.01624).

    x_{i+1} = step(c_eps[i] * eps_i, t_i, c_x[i] * x_i)

    pipeline.scheduler = precondition(pipeline.scheduler, Coefficients.ramp(4, 1.1, 0.95))

The network is left alone and still sees the unscaled x_i; alphas, sigmas, timesteps and injected
noise stay as they are. It holds for epsilon, v, sample and flow prediction alike.

Coefficients with an average change what the last step returns: the weighted sum of the steps' x0
predictions, the last one being what the stock step returns. Rounding errors of a quantized network
differ from step to step, so they average out in part. It costs one latent of memory.

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
import dis
import functools
import inspect
from typing import Any

import diffusers
import numpy as np
import torch

# diffusers looks for this name in the module of a scheduler that it loads in a pipeline.
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from qsched.errors import CoefficientsError, ScheduleError
from qsched.libraries import quiet
from qsched.schedule.coefficients import Coefficients
from qsched.schedule.schedulers import AVERAGING, WORKING, predicts_x0, refusal
from qsched.schedule.step import Preconditioned, Series


def precondition(scheduler: Any, coefficients: Coefficients) -> Any:
    """A scheduler of the same kind and config whose steps are scaled by `coefficients`.

    `scheduler`: any diffusers scheduler with the usual `step(model_output, timestep, sample, ...)`
    that is called once per network call; it is not changed, and the result starts afresh, without
    timesteps. Ones change nothing, to the bit: tables that were changed in place after construction
    (alphas with a zero terminal signal-to-noise ratio) are carried over; no config holds them, so
    saving such a scheduler raises `ScheduleError`. Preconditioning again replaces the coefficients.
    Setting another number of timesteps than `coefficients.steps` on the result raises
    `CoefficientsError`, stepping outside the schedule `ScheduleError`.

    Raises `ScheduleError` for schedulers that can't be preconditioned (Heun, KDPM2, PNDM ...), for
    one whose methods were replaced, and for an average of those that make no x0 prediction in their
    steps.
    """
    stock = getattr(type(scheduler), "stock", type(scheduler))  # exported ones have it too
    reason = _refusal(stock) or _learns_variance(scheduler)
    if reason:
        raise ScheduleError(f"{stock.__name__}: {reason}; what works: {WORKING}")
    if coefficients.average and not predicts_x0(_names(stock), scheduler.config):
        raise ScheduleError(
            f"{stock.__name__}: its steps predict no x0 that could be averaged; use another "
            f"parametrisation, or one of {AVERAGING}"
        )
    # diffusers takes an argument once left at its default for unset, even where it was changed
    # since (StableDiffusionPipeline changes steps_offset), so the mark is put back afterwards.
    config = copy.deepcopy(dict(scheduler.config))
    defaults = config.pop("_use_default_values", None)
    config.pop("_calibration", None)  # what an export says of other coefficients
    kind = preconditioned_class(stock)
    with quiet():  # of what a pipeline put into the config beside the scheduler's own (Cosmos)
        result = kind.from_config(
            config,
            model_coefficients=list(coefficients.model),
            sample_coefficients=list(coefficients.sample),
            average_weights=list(coefficients.average) or None,
        )
    if defaults is not None:
        result.register_to_config(_use_default_values=defaults)
    if getattr(diffusers, stock.__name__, None) is not stock:
        result.register_to_config(_stock_module=stock.__module__)  # for a file that stands alone
    if hasattr(scheduler, "set_shift"):  # the one setting that is in use but not in the config
        result.set_shift(scheduler.shift)
    _carry_over(scheduler, result)
    return result


def _carry_over(scheduler: Any, result: Any) -> None:
    """Gives `result` what was changed in `scheduler` since it was constructed, but for what its
    sampling has left there."""
    kind: Any = type(scheduler)
    of_sampling = _assigned_by_sampling(kind)
    built = vars(result)
    carried = set()
    for name, value in vars(scheduler).items():
        if name in of_sampling or name in ("_internal_dict", "_averaged", "_carried", "_rows"):
            continue
        history = built.get(name)
        if isinstance(history, list) and all(each is None for each in history):
            continue  # filled step by step
        if callable(value) and hasattr(kind, name):
            raise ScheduleError(
                f"{kind.__name__}: its {name} was replaced on this instance; expected "
                "the class's own; make it a subclass that overrides it"
            )
        if name not in built or not _equal(value, built[name]):
            setattr(result, name, copy.deepcopy(value))
            carried.add(name)
    if carried | set(getattr(scheduler, "_carried", ())):
        result._carried = tuple(sorted(carried | set(getattr(scheduler, "_carried", ()))))


@functools.cache
def _assigned_by_sampling(kind: Any) -> frozenset[str]:
    """The attributes that a scheduler's methods assign while it samples."""
    found: set[str] = set()
    todo, seen = (
        ["set_timesteps", "step", "scale_model_input", "set_begin_index", "set_shift"],
        set(),
    )
    while todo:
        method = todo.pop()
        seen.add(method)
        for base in kind.__mro__:
            function = inspect.unwrap(vars(base).get(method) or _nothing)
            if inspect.isfunction(function):
                found |= {
                    each.argval
                    for each in dis.get_instructions(function)
                    if each.opname == "STORE_ATTR"
                }
                todo += set(function.__code__.co_names) - seen - {"__init__"}
    return frozenset(found)


def _nothing() -> None:
    """What a class has that doesn't define a method."""


def _equal(one: Any, other: Any) -> bool:
    """Whether two values of a scheduler's attribute are the same, wherever they lie."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if inspect.isfunction(one) and inspect.isfunction(other):  # a constructor's own, of its config
        return one.__code__ == other.__code__
    return type(one) is type(other) and bool(one == other)


def coefficients_of(scheduler: Any) -> Coefficients | None:
    """The coefficients that a scheduler's steps use; None if it is not preconditioned."""
    if not hasattr(type(scheduler), "stock"):
        return None
    used = scheduler.coefficients  # of an exported one too
    return Coefficients(used.model, used.sample, used.average)


def is_last_step(scheduler: Any, timestep: Any) -> bool:
    """Whether the step of a preconditioned scheduler that starts at `timestep`, and was not made
    yet, is the last one of its schedule."""
    return bool(scheduler._step_at(timestep) == len(scheduler.config.model_coefficients) - 1)


def preconditioned_class(stock: type) -> Any:
    """The class `qsched.schedule.Preconditioned<stock>`, always the same one for `stock`."""
    name = f"Preconditioned{stock.__name__}"
    if name not in globals():
        summary = f"`{stock.__name__}` with coefficients; see `qsched.schedule.precondition`."
        members = {
            "__module__": "qsched.schedule",
            "__doc__": summary,
            "coefficients_error": CoefficientsError,
            "schedule_error": ScheduleError,
            "accepted": staticmethod(_accepted),
            "coefficients": property(_coefficients),
            "save_config": _save_config,
        }
        globals()[name] = type(name, (Preconditioned, stock), members)
    found = globals()[name]
    if found.stock is not stock:
        raise ScheduleError(
            f"{stock.__module__}.{stock.__name__}: {found.stock.__module__} has a scheduler of the "
            "same name; expected one per process; rename the class"
        )
    return found


def _coefficients(scheduler: Any) -> Coefficients:
    """The coefficients in use: those of the config."""
    config = scheduler.config
    return Coefficients(
        config.model_coefficients,
        config.sample_coefficients,
        config.get("average_weights") or (),
    )


def _save_config(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Stock's, unless the file would lack what was changed in place."""
    if getattr(self, "_carried", ()):
        raise ScheduleError(
            f"{type(self).__name__}: its {', '.join(self._carried)} was changed in place, which no "
            "scheduler_config.json holds; expected what the config says; set it by the config "
            "(rescale_betas_zero_snr, trained_betas), or save the coefficients alone"
        )
    return self.stock.save_config(self, *args, **kwargs)


def _accepted(model: Any, sample: Any, average: Any) -> tuple[Series, Series, Series]:
    """The coefficients that a config may hold; CoefficientsError for others."""
    found = Coefficients(model, sample, average)
    return found.model, found.sample, found.average


def _refusal(stock: type) -> str | None:
    """Why no scheduler of this class can be preconditioned; None if it can."""
    if not issubclass(stock, SchedulerMixin):
        return "it is no diffusers scheduler"
    step = getattr(stock, "step", None)
    usual = step is not None and hasattr(stock, "set_timesteps")
    parameters = list(inspect.signature(step).parameters)[1:] if step and usual else []
    return refusal(_names(stock), parameters, getattr(stock, "order", 1))


def _names(stock: type) -> list[str]:
    return [base.__name__ for base in stock.__mro__]


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
