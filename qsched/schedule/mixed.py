"""One scheduler for a batch whose images have coefficients of their own.

    x_{i+1}[k] = step(c_eps[k][i] * eps_i[k], t_i, c_x[k][i] * x_i[k])      of image k

    pipeline.scheduler = precondition_mixed(pipeline.scheduler, [one, other])    # two images

Coefficients are numbers of an image, so images of several trials can share every network call. An
image comes out as under its own `precondition`, to the bit, in a batch of the same size.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qsched.errors import CoefficientsError, ScheduleError
from qsched.schedule.coefficients import Coefficients
from qsched.schedule.preconditioning import precondition
from qsched.schedule.step import with_sample


def precondition_mixed(scheduler: Any, coefficients: Sequence[Coefficients]) -> Any:
    """A scheduler like `precondition`'s for batches of `len(coefficients)` images, in their order.

    Row k of what its step is given belongs to image k; a tensor of another length raises
    `ScheduleError`. It samples and can be copied, but not saved. Raises `CoefficientsError` for
    none, and for coefficients of different numbers of steps; else what `precondition` raises.
    """
    steps = {each.steps for each in coefficients}
    if len(steps) != 1:
        raise CoefficientsError(
            f"coefficients for {' and '.join(map(str, sorted(steps))) or 'no'} steps in one batch; "
            "expected one number of steps for all of its images"
        )
    averages = [each.average for each in coefficients if each.average]
    ones = Coefficients.identity(steps.pop()).averaged(averages[0] if averages else ())
    result = precondition(scheduler, ones)  # the rows are scaled before its step, by ones
    kind: Any = type(result)
    result.__class__ = _mixed_class(kind)
    result._rows = tuple(coefficients)
    return result


@functools.cache
def _mixed_class(kind: Any) -> Any:
    """A preconditioned class with its step for rows; its name says where an error was raised."""
    members = {"__module__": kind.__module__, "__doc__": kind.__doc__, "step": _step(kind)}
    return type(kind.__name__, (_Mixed, kind), members)


class _Mixed:
    """Mixed into a preconditioned class, in front: scales and averages row by row."""

    _rows: tuple[Coefficients, ...] = ()
    _averaged: Any = (0.0, 0.0)
    """The weights of the rows' x0 predictions so far, in float64, and their weighted sums."""

    @property
    def coefficients(self) -> Any:
        raise ScheduleError(self._refusal("a single one"))

    def save_config(self, *args: Any, **kwargs: Any) -> None:
        raise ScheduleError(self._refusal("a scheduler_config.json"))

    def _refusal(self, wanted: str) -> str:
        return (
            f"{type(self).__name__}: its images have coefficients of their own, which {wanted} "
            "can't hold; use qsched.precondition(scheduler, coefficients)"
        )

    def _average(self, output: Any, x0: Tensor, weights: Sequence[float], index: int) -> Any:
        """As of one image, by each row's weights; a row that has none keeps the step's sample."""
        used, total = self._averaged if index else (0.0, 0.0)
        if index < len(weights) - 1:
            now = np.array([row.average[index] if row.average else 0.0 for row in self._rows])
            self._averaged = used + now, total + _column(now, x0.float()) * x0.float()
            return output
        self._averaged = (0.0, 0.0)
        last = output[0]
        mean = (total + _column(1.0 - used, last.float()) * last.float()).to(last.dtype)
        averages = _column([bool(row.average) for row in self._rows], last).bool()
        return with_sample(output, torch.where(averages, mean, last))


def _step(kind: Any) -> Callable[..., Any]:
    """The preconditioned step, whose coefficients are ones, between rows that are scaled."""

    @functools.wraps(kind.step)
    def step(
        self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        index = self._step_at(timestep)
        eps = _scaled(self, "model output", model_output, [row.model[index] for row in self._rows])
        x = _scaled(self, "sample", sample, [row.sample[index] for row in self._rows])
        return kind.step(self, eps, timestep, x, *args, **kwargs)

    return step


def _scaled(scheduler: Any, name: str, tensor: Any, numbers: Sequence[float]) -> Any:
    """Each row of a tensor times its number, in the tensor's dtype; at ones the tensor itself.

    Multiplied in float32 at least, as `step` does, where 1 changes no bit.
    """
    if not isinstance(tensor, Tensor) or not tensor.ndim or len(tensor) != len(numbers):
        found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ScheduleError(
            f"{type(scheduler).__name__}: a {name} of {found}; expected {len(numbers)} rows, one "
            "for each image of the batch, to scale them by coefficients of their own"
        )
    if set(numbers) == {1.0}:
        return tensor
    column = _column(numbers, tensor)
    return (tensor.to(column.dtype) * column).to(tensor.dtype)


def _column(numbers: Any, like: Tensor) -> Tensor:
    """(rows, 1, ..., 1): a number for each row of a tensor, on its device, in float32 at least."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    column = torch.tensor(numbers, dtype=dtype, device=like.device)
    return column.reshape(-1, *[1] * (like.ndim - 1))
