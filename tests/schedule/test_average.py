"""The average of the steps' x0 predictions: in each scheduler that makes some, in pipelines."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

from qsched.errors import ScheduleError
from qsched.pipelines.generator import CACHES, ImageGenerator
from qsched.schedule.coefficients import Coefficients
from qsched.schedule.preconditioning import coefficients_of, precondition
from tests.support.loops import SCALED, SCHEDULERS, TARGETS, WEIGHTS, loop
from tests.support.twin_pipelines import CASES, NO_CACHE, PROMPTS, Case, twin

AVERAGE = Coefficients.identity(4).averaged(WEIGHTS)


each = pytest.mark.parametrize("name", SCHEDULERS)


@each
def test_the_last_step_returns_the_weighted_sum(name: str) -> None:
    """The network predicts known targets as x0; the last one is what the stock step returns."""
    last = loop(SCHEDULERS[name][0](), name)
    early = sum(w * target for w, target in zip(WEIGHTS[:3], TARGETS[:3], strict=True))
    found = loop(precondition(SCHEDULERS[name][0](), AVERAGE), name)
    torch.testing.assert_close(found, early + WEIGHTS[3] * last, rtol=1e-3, atol=2e-3)
    assert not torch.allclose(found, last, atol=0.1)


@each
def test_the_last_step_alone_is_a_no_op_to_the_bit(name: str) -> None:
    alone = Coefficients.identity(4).averaged((0.0, 0.0, 0.0, 1.0))
    stock = SCHEDULERS[name][0]()
    assert torch.equal(loop(precondition(stock, alone), name), loop(stock, name))


@each
def test_steps_that_are_skipped_leave_their_weights_to_the_last(name: str) -> None:
    """Image to image begins in the middle."""
    last = loop(SCHEDULERS[name][0](), name, first=2)
    found = loop(precondition(SCHEDULERS[name][0](), AVERAGE), name, first=2)
    expected = WEIGHTS[2] * TARGETS[2] + (1 - WEIGHTS[2]) * last
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_is_the_stock_schedulers(name: str, dtype: torch.dtype) -> None:
    stock = SCHEDULERS[name][0]()
    expected = loop(stock, name, dtype=dtype).dtype
    assert loop(precondition(stock, SCALED), name, dtype=dtype).dtype == expected


@each
def test_a_saved_one_steps_the_same(name: str, tmp_path: Path) -> None:
    ours = precondition(SCHEDULERS[name][0](), SCALED)
    expected = loop(ours, name)
    ours.save_pretrained(tmp_path)
    loaded = type(ours).from_pretrained(tmp_path)
    assert coefficients_of(loaded) == SCALED
    for other in (loaded, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), ours):
        assert torch.equal(loop(other, name), expected)


def test_both_kinds_of_output_hold_the_average() -> None:
    x, v = torch.ones(1, 4, 2, 2), torch.full((1, 4, 2, 2), 0.5)
    results = []
    for return_dict in (True, False):
        ours = precondition(FlowMatchEulerDiscreteScheduler(), AVERAGE)
        ours.set_timesteps(4)
        for t in ours.timesteps:
            output = ours.step(v, t, x, return_dict=return_dict)
        results.append(output.prev_sample if return_dict else output[0])
    assert torch.equal(*results)


@pytest.mark.parametrize("return_dict", [True, False])
def test_what_lcm_returns_beside_its_sample_is_the_average_too(return_dict: bool) -> None:
    """Its own pipeline decodes that."""
    ours = precondition(LCMScheduler(), AVERAGE)
    ours.set_timesteps(4)
    x = torch.ones(1, 4, 2, 2)
    for t in ours.timesteps:
        output = ours.step(x, t, x, return_dict=return_dict)
    assert len(output) == 2
    assert output[1] is output[0]
    assert return_dict is False or output.prev_sample is output.denoised


@pytest.mark.parametrize(
    "scheduler",
    [
        DPMSolverMultistepScheduler(algorithm_type="dpmsolver", final_sigmas_type="sigma_min"),
        UniPCMultistepScheduler(predict_x0=False),
        DEISMultistepScheduler(),
    ],
)
def test_what_predicts_no_x0_is_refused_in_words(scheduler: Any) -> None:
    precondition(scheduler, AVERAGE.scalars)
    with pytest.raises(ScheduleError, match="predict no x0 that could be averaged; use another"):
        precondition(scheduler, AVERAGE)


# With a pipeline.


@pytest.fixture(
    params=[
        "SDXL, Euler ancestral injects noise",
        "LCM injects noise, guidance embedded",
        "SD 1.5, LoRA, TCD, classifier-free guidance",
        "FLUX, flow matching",
        "SD3, flow matching",
    ]
)
def case(request: pytest.FixtureRequest) -> Case:
    name, sampling = CASES[request.param]
    return twin(name, **sampling)


def weights(steps: int, share: float) -> Coefficients:
    return Coefficients.identity(steps).averaged(
        [*[share / steps] * (steps - 1), 1 - share + share / steps]
    )


def test_caches_change_no_pixel_and_spare_every_network_call(case: Case) -> None:
    pipeline, sampling = case
    steps = sampling.steps
    uncached = ImageGenerator(pipeline, sampling, batch_size=4, caches=NO_CACHE)
    cached = ImageGenerator(pipeline, sampling, batch_size=4, caches=CACHES)
    identity = Coefficients.identity(steps)
    last_alone = uncached.generate(PROMPTS, identity)
    assert torch.equal(cached.generate(PROMPTS, identity), last_alone)
    for share in (1.0, 0.5, 1.0):
        expected = uncached.generate(PROMPTS, weights(steps, share))
        assert not torch.equal(expected, last_alone)
        assert torch.equal(cached.generate(PROMPTS, weights(steps, share)), expected)
    batches = 2
    assert cached.network_calls == batches * (steps + (steps - 1))  # two passes, not four
    # Other coefficients go another way, and back.
    ramp = Coefficients.constant(steps, 1.1, 0.93)
    for again in (ramp, weights(steps, 1.0)):
        assert torch.equal(cached.generate(PROMPTS, again), uncached.generate(PROMPTS, again))
