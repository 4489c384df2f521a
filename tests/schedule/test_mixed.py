"""Images with coefficients of their own in one batch are what each is under its own scheduler.

Compared bit by bit, signs of zero included, with batches of the same size.
"""

import copy
import inspect
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from qsched.errors import CoefficientsError, ScheduleError
from qsched.schedule.coefficients import Coefficients
from qsched.schedule.mixed import precondition_mixed
from qsched.schedule.preconditioning import coefficients_of, is_last_step, precondition

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers on NumPy 2

SCHEDULERS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "LCM": (LCMScheduler, {}),
    "LCM-v": (lambda: LCMScheduler(prediction_type="v_prediction"), {}),
    "TCD": (TCDScheduler, {"eta": 0.0}),
    "TCD-eta": (TCDScheduler, {"eta": 0.3}),
    "EulerAncestral": (EulerAncestralDiscreteScheduler, {}),
    "Euler": (EulerDiscreteScheduler, {}),
    "FlowMatchEuler": (FlowMatchEulerDiscreteScheduler, {}),
    "FlowMatchEuler-stochastic": (
        lambda: FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        {},
    ),
    "DPMSolver": (DPMSolverMultistepScheduler, {}),
    "DPMSolver-sde": (
        lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=2),
        {},
    ),
    "UniPC": (UniPCMultistepScheduler, {}),
    "DDIM": (lambda: DDIMScheduler(clip_sample=False), {}),
    "DDIM-eta": (lambda: DDIMScheduler(clip_sample=False), {"eta": 0.5}),
}
each = pytest.mark.parametrize("name", SCHEDULERS)


def rows(steps: int) -> list[Coefficients]:
    """Of five images: none, both kinds, one kind at some steps only, averages beside both."""
    moved = Coefficients.ramp2(steps, 1.13, 1.04, 0.91, 0.96)
    partly = Coefficients((1.0,) * steps, (*(1.0,) * (steps - 1), 1.07))
    weights = [0.3, -0.1, 0.2, 0.6][-steps:]
    weights[-1] += 1.0 - sum(weights)
    identity = Coefficients.identity(steps)
    return [identity, moved, partly, moved.averaged(weights), identity.averaged(weights[::-1])]


def run(
    scheduler: Any, name: str, steps: int, *, dtype: torch.dtype = torch.float32, first: int = 0
) -> Tensor:
    """Every sample of a loop over five images, each with its own noise: (steps, 5, ...)."""
    scheduler.set_timesteps(steps)
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    options = dict(SCHEDULERS[name][1])
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = [torch.Generator().manual_seed(seed) for seed in range(5)]
    x = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(7)).to(dtype)
    x[:, :, 0] = -0.0
    samples = []
    for t in scheduler.timesteps[first:]:
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
        eps = torch.sin(1.7 * scale(x, t) + 0.003 * float(t)).to(dtype)
        eps[:, :, 1] = -0.0
        x = scheduler.step(eps, t, x, return_dict=False, **options)[0]
        samples.append(x)
    return torch.stack(samples)


def bits(samples: Tensor) -> Tensor:
    return samples.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[samples.itemsize])


def assert_as_alone(name: str, coefficients: Sequence[Coefficients], **how: Any) -> None:
    build = SCHEDULERS[name][0]
    steps = coefficients[0].steps
    together = run(precondition_mixed(build(), coefficients), name, steps, **how)
    for k, own in enumerate(coefficients):
        alone = run(precondition(build(), own), name, steps, **how)
        assert torch.equal(bits(together[:, k]), bits(alone[:, k])), f"image {k}"
    moved = run(precondition(build(), coefficients[1]), name, steps, **how)
    assert not torch.equal(moved[-1, 0], together[-1, 0])


@each
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_image_is_what_it_is_alone_at_every_step(name: str, steps: int) -> None:
    assert_as_alone(name, rows(steps))


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_in_other_precisions_too(name: str, dtype: torch.dtype) -> None:
    assert_as_alone(name, rows(4), dtype=dtype)


@each
def test_image_to_image_leaves_skipped_weights_to_the_last_step(name: str) -> None:
    assert_as_alone(name, rows(4), first=2)
    assert_as_alone(name, rows(4), first=3)


def test_one_changes_no_bit_of_its_row() -> None:
    """Tiny, huge and negative zero; the other row is scaled."""

    class KeepingScheduler(FlowMatchEulerDiscreteScheduler):
        def step(
            self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
        ) -> Any:
            self.given = (model_output, sample)
            return super().step(model_output, timestep, sample, return_dict=return_dict)

    ours = precondition_mixed(KeepingScheduler(), rows(4)[:2])
    ours.set_timesteps(4)
    odd = torch.tensor([-0.0, 1e-40, 3.38e38, float("inf"), 1.003]).bfloat16()
    x = odd.repeat(2, 1)
    ours.step(x, ours.timesteps[0], x)
    for tensor, c in zip(ours.given, (1.13, 0.91), strict=True):
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(bits(tensor[0]), bits(odd))
        assert torch.equal(bits(tensor[1]), bits((odd.float() * c).bfloat16()))


def test_both_kinds_of_output_hold_the_averages() -> None:
    x, v = torch.ones(5, 4, 2, 2), torch.full((5, 4, 2, 2), 0.5)
    results = []
    for return_dict in (True, False):
        ours = precondition_mixed(FlowMatchEulerDiscreteScheduler(), rows(4))
        ours.set_timesteps(4)
        for t in ours.timesteps:
            output = ours.step(v, t, x, return_dict=return_dict)
        results.append(output.prev_sample if return_dict else output[0])
    assert torch.equal(*results)
    assert not torch.equal(results[0][0], results[0][4])


def test_a_row_without_an_average_is_the_last_steps_own_sample() -> None:
    """Signs of zero included, which a sum with nothing would lose."""
    ours = precondition_mixed(FlowMatchEulerDiscreteScheduler(), [rows(4)[0], rows(4)[4]])
    ours.set_timesteps(4)
    x = torch.full((2, 3), -0.0)
    for t in ours.timesteps:
        x = ours.step(torch.zeros(2, 3), t, x).prev_sample
    assert x.signbit().tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ((torch.ones(4, 2), torch.ones(5, 2)), r"a model output of \(4, 2\); expected 5 rows, one"),
        ((torch.ones(5, 2), torch.ones(10, 2)), r"a sample of \(10, 2\); expected 5 rows, one for"),
        ((torch.ones(5, 2), torch.tensor(1.0)), r"a sample of \(\); expected 5 rows"),
        (([torch.ones(2)] * 5, torch.ones(5, 2)), "a model output of list; expected 5 rows"),
    ],
)
def test_rows_that_are_no_images_are_an_error_in_words(tensors: Any, words: str) -> None:
    ours = precondition_mixed(FlowMatchEulerDiscreteScheduler(), rows(4))
    ours.set_timesteps(4)
    with pytest.raises(
        ScheduleError, match=f"^PreconditionedFlowMatchEulerDiscreteScheduler: {words}"
    ):
        ours.step(tensors[0], ours.timesteps[0], tensors[1])


@pytest.mark.parametrize(
    ("coefficients", "words"),
    [
        ([], "coefficients for no steps in one batch; expected one number"),
        ([*rows(2), *rows(4)], "for 2 and 4 steps in one batch"),
    ],
)
def test_coefficients_that_make_no_batch_are_refused(
    coefficients: list[Coefficients], words: str
) -> None:
    with pytest.raises(CoefficientsError, match=words):
        precondition_mixed(LCMScheduler(), coefficients)


def test_averages_of_a_scheduler_that_predicts_no_x0_are_refused() -> None:
    stock = UniPCMultistepScheduler(predict_x0=False)
    precondition_mixed(stock, rows(4)[:3])  # none of these has one
    with pytest.raises(ScheduleError, match="predict no x0 that could be averaged"):
        precondition_mixed(stock, rows(4))


@each
def test_pipelines_find_the_stock_signatures(name: str) -> None:
    stock = SCHEDULERS[name][0]()
    ours = precondition_mixed(stock, rows(4))
    assert inspect.signature(ours.step) == inspect.signature(stock.step)
    assert isinstance(ours, type(stock))


@each
def test_it_can_be_copied_and_used_again_but_not_saved(name: str, tmp_path: Path) -> None:
    ours = precondition_mixed(SCHEDULERS[name][0](), rows(4))
    expected = run(ours, name, 4)
    for again in (ours, copy.deepcopy(ours)):
        assert torch.equal(run(again, name, 4), expected)
    with pytest.raises(ScheduleError, match="which a scheduler_config"):
        ours.save_pretrained(tmp_path)
    with pytest.raises(ScheduleError, match="which a single one can't hold"):
        coefficients_of(ours)
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(ours)
    single = precondition(ours, rows(4)[1])
    assert coefficients_of(single) == rows(4)[1]
    single.save_pretrained(tmp_path)


@each
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_last_step_is_known_before_it_is_made(name: str, steps: int) -> None:
    ours = precondition_mixed(SCHEDULERS[name][0](), rows(steps))
    ours.set_timesteps(steps)
    x = torch.ones(5, 4, 6, 6)
    known = []
    for t in ours.timesteps:
        known.append(is_last_step(ours, t))
        x = ours.step(x, t, x, return_dict=False, **SCHEDULERS[name][1])[0]
    assert known == [False] * (steps - 1) + [True]
