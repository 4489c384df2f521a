"""Preconditioning against the stock schedulers of diffusers, which are the oracle."""

import copy
import functools
import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from qsched.errors import CoefficientsError, QschedError, ScheduleError
from qsched.schedule import preconditioning as schedule
from qsched.schedule.coefficients import Coefficients
from qsched.schedule.preconditioning import coefficients_of, precondition
from qsched.schedule.step import Preconditioned

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers on NumPy 2

COEFFICIENTS = Coefficients((1.1, 0.9, 1.05, 0.97), (0.95, 1.02, 1.0, 1.03))
IDENTITY = Coefficients.identity(4)
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """A scheduler, and how a pipeline runs it for four steps."""

    build: Callable[[], Any]
    timesteps: Mapping[str, Any] = field(default_factory=lambda: {"num_inference_steps": 4})
    options: Mapping[str, Any] = field(default_factory=dict)
    per_image: bool = False  # timesteps are given as one number per image


def named(name: str, *, build: Mapping[str, Any] | None = None, **how: Any) -> Case:
    return Case(lambda: getattr(diffusers, name)(**(build or {})), **how)


CASES = {
    "LCM": Case(LCMScheduler),
    "LCM-v": Case(lambda: LCMScheduler(prediction_type="v_prediction")),
    "LCM-sample": Case(lambda: LCMScheduler(prediction_type="sample")),
    "TCD": Case(TCDScheduler, options={"eta": 0.0}),
    "TCD-eta": Case(TCDScheduler, options={"eta": 0.3}),
    "EulerAncestral": Case(lambda: EulerAncestralDiscreteScheduler(timestep_spacing="trailing")),
    "Euler": Case(EulerDiscreteScheduler),
    "Euler-churn": Case(EulerDiscreteScheduler, options={"s_churn": 0.5}),
    "FlowMatchEuler": Case(FlowMatchEulerDiscreteScheduler),
    "FlowMatchEuler-stochastic": Case(
        lambda: FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    ),
    "DPMSolverMultistep": Case(DPMSolverMultistepScheduler),
    "DPMSolverMultistep-sde": Case(
        lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=3)
    ),
    "UniPC": Case(UniPCMultistepScheduler),
    "DDIM": Case(DDIMScheduler),
    "DDIM-eta": Case(DDIMScheduler, options={"eta": 0.5}),
}
OTHERS = {
    "CM": named("CMStochasticIterativeScheduler"),
    "CogVideoXDDIM": named("CogVideoXDDIMScheduler"),
    "DDIMInverse": named("DDIMInverseScheduler"),
    "DDPM": named("DDPMScheduler"),
    "DEIS": named("DEISMultistepScheduler"),
    "DPMSolverInverse": named("DPMSolverMultistepInverseScheduler"),
    "DPMSolverSinglestep": named("DPMSolverSinglestepScheduler"),
    "EDMDPMSolver": named("EDMDPMSolverMultistepScheduler"),
    "EDMEuler": named("EDMEulerScheduler"),
    "FlowMap": named("FlowMapEulerDiscreteScheduler"),
    "FlowMatchLCM": named("FlowMatchLCMScheduler"),
    "IPNDM": named("IPNDMScheduler"),
    "LTX": named("LTXEulerAncestralRFScheduler"),
    "LTX-sigmas": named(
        "LTXEulerAncestralRFScheduler", timesteps={"sigmas": [1.0, 0.75, 0.5, 0.25, 0.0]}
    ),
    "MiniMax": named("MiniMaxH3Scheduler", timesteps={"num_inference_steps": 5}),
    "SASolver": named("SASolverScheduler"),
    "SCM": named(
        "SCMScheduler", timesteps={"num_inference_steps": 4, "intermediate_timesteps": None}
    ),
    "UnCLIP": named("UnCLIPScheduler"),
    "Wuerstchen": named("DDPMWuerstchenScheduler", per_image=True),
}
MATTERING = [name for name in CASES if "-" not in name or name.endswith("-eta")]


@dataclass(frozen=True)
class Run:
    """Every sample of a loop, and where its random numbers ended."""

    samples: Tensor
    random_state: Tensor

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Run)
            and self.samples.dtype == other.samples.dtype
            and torch.equal(self.samples, other.samples)
            and torch.equal(self.random_state, other.random_state)
        )


def network(x: Tensor, t: Any) -> Tensor:
    return torch.sin(1.7 * x + 0.003 * float(t)).to(x.dtype)


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(
    scheduler: Any,
    case: Case,
    *,
    by_hand: Coefficients = IDENTITY,
    start: Tensor | None = None,
    first: int = 0,
    reset: bool = True,
) -> Run:
    """A pipeline's loop from the step `first`; `by_hand`: what scales the step's inputs here."""
    if reset:
        scheduler.set_timesteps(**case.timesteps)
    accepted = inspect.signature(scheduler.step).parameters
    generator = torch.Generator().manual_seed(1)
    options = dict(case.options) | ({"generator": generator} if "generator" in accepted else {})
    x = noise(2, 4, 6, 6) if start is None else start
    samples = []
    for i, t in list(enumerate(scheduler.timesteps))[first:4]:
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
        eps = network(scale(x, t), t)
        eps = eps * by_hand.model[i] if by_hand.model[i] != 1.0 else eps
        x = x * by_hand.sample[i] if by_hand.sample[i] != 1.0 else x
        t = t.expand(len(x)) if case.per_image else t
        x = scheduler.step(eps, t, x, **options).prev_sample
        samples.append(x)
    return Run(torch.stack(samples), generator.get_state())


each = pytest.mark.parametrize("name", [*CASES, *OTHERS])
each_mattering = pytest.mark.parametrize("name", MATTERING)


def case_of(name: str) -> Case:
    return CASES.get(name) or OTHERS[name]


# What a preconditioned step is.


@each
def test_ones_are_a_no_op_to_the_bit(name: str) -> None:
    case = case_of(name)
    stock = case.build()
    assert run(precondition(stock, IDENTITY), case) == run(stock, case)


@each
def test_a_step_is_the_stock_step_on_scaled_inputs(name: str) -> None:
    case = case_of(name)
    ours = run(precondition(case.build(), COEFFICIENTS), case)
    assert ours == run(case.build(), case, by_hand=COEFFICIENTS)
    assert not torch.equal(ours.samples, run(case.build(), case).samples)
    assert ours.samples.isfinite().all()


def cumulative_alphas(first: float, last: float) -> np.ndarray:
    """Products of 1 - beta in float64; betas as Stable Diffusion has them."""
    return np.cumprod(1.0 - np.linspace(first**0.5, last**0.5, 1000) ** 2)


def by_formula(
    scheduler: Any, formula: Callable[[int, np.ndarray, np.ndarray], np.ndarray], **options: Any
) -> None:
    """Each step of a loop equals `formula(i, c_eps * eps, c_x * x)`, computed in float64."""
    ours = precondition(scheduler, COEFFICIENTS)
    ours.set_timesteps(4)
    x = noise(2, 4, 6, 6)
    for i, t in enumerate(ours.timesteps):
        eps = network(x, t)
        scaled_eps = COEFFICIENTS.model[i] * eps.double().numpy()
        scaled_x = COEFFICIENTS.sample[i] * x.double().numpy()
        expected = formula(i, scaled_eps, scaled_x)
        x = ours.step(eps, t, x, **options).prev_sample
        np.testing.assert_allclose(x.numpy(), expected, rtol=2e-4, atol=2e-5)


def test_euler_by_hand() -> None:
    alphas = cumulative_alphas(0.00085, 0.012)
    at = np.linspace(0, 999, 4)[::-1]
    sigmas = [*np.interp(at, np.arange(1000), ((1 - alphas) / alphas) ** 0.5), 0.0]
    by_formula(
        EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        lambda i, eps, x: x + (sigmas[i + 1] - sigmas[i]) * eps,
    )


def test_flow_matching_by_hand() -> None:
    shifted = [3 * s / (1 + 2 * s) for s in np.linspace(1.0, 3 * 0.001 / 1.002, 4)]
    sigmas = [*shifted, 0.0]
    by_formula(
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda i, v, x: x + (sigmas[i + 1] - sigmas[i]) * v,
    )


def test_ddim_by_hand() -> None:
    alphas = cumulative_alphas(0.00085, 0.012)
    a: list[float] = [*alphas[[750, 500, 250, 0]], 1.0]  # "leading" spacing

    def formula(i: int, eps: np.ndarray, x: np.ndarray) -> np.ndarray:
        x0 = (x - sqrt(1 - a[i]) * eps) / sqrt(a[i])
        return sqrt(a[i + 1]) * x0 + sqrt(1 - a[i + 1]) * eps

    by_formula(
        DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        ),
        formula,
    )


def test_lcm_by_hand() -> None:
    alphas = cumulative_alphas(0.00085, 0.012)
    at = [999, 759, 499, 259]  # of the 50 steps 19, 39 ... 999 that LCM is distilled at
    a: list[float] = [*alphas[at], 1.0]
    ours, theirs = (torch.Generator().manual_seed(3) for _ in range(2))

    def formula(i: int, eps: np.ndarray, x: np.ndarray) -> np.ndarray:
        t = 10.0 * at[i]
        c_skip, c_out = 0.25 / (t**2 + 0.25), t / sqrt(t**2 + 0.25)
        x0 = (x - sqrt(1 - a[i]) * eps) / sqrt(a[i])
        denoised = c_out * x0 + c_skip * x
        if i == 3:
            return denoised
        z = torch.randn(2, 4, 6, 6, generator=theirs).double().numpy()
        return sqrt(a[i + 1]) * denoised + sqrt(1 - a[i + 1]) * z

    by_formula(LCMScheduler(), formula, generator=ours)


@pytest.mark.parametrize("build", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_history_of_a_multistep_solver_holds_the_scaled_output(build: Any) -> None:
    ours = precondition(build(), COEFFICIENTS)
    ours.set_timesteps(4)
    x, t = noise(1, 4, 6, 6), ours.timesteps[0]
    eps = network(x, t)
    ours.step(eps, t, x)
    sigma = float(ours.sigmas[0])
    alpha = 1 / (1 + sigma**2) ** 0.5
    x0 = (0.95 * x - sigma * alpha * 1.1 * eps) / alpha
    torch.testing.assert_close(ours.model_outputs[-1], x0, rtol=1e-4, atol=1e-4)
    if hasattr(ours, "last_sample"):
        torch.testing.assert_close(ours.last_sample, 0.95 * x)


@each_mattering
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_those_of_the_stock_scheduler(name: str, dtype: torch.dtype) -> None:
    case, start = case_of(name), noise(1, 4, 6, 6, dtype=dtype)
    stock = run(case.build(), case, start=start)
    assert run(precondition(case.build(), IDENTITY), case, start=start) == stock
    scaled = run(precondition(case.build(), COEFFICIENTS), case, start=start)
    assert scaled.samples.dtype == stock.samples.dtype
    assert not torch.equal(scaled.samples, stock.samples)


@each_mattering
@pytest.mark.parametrize("shape", [(2, 9, 16), (2, 4, 6, 6), (2, 4, 3, 6, 6)])
def test_any_rank(name: str, shape: tuple[int, ...]) -> None:
    case, start = case_of(name), noise(*shape)
    ours = run(precondition(case.build(), COEFFICIENTS), case, start=start)
    assert ours == run(case.build(), case, start=start, by_hand=COEFFICIENTS)
    assert ours.samples.shape[1:] == shape


class RecorderScheduler(SchedulerMixin, ConfigMixin):
    """A third-party scheduler, without a step index, that keeps what its step is given."""

    @register_to_config
    def __init__(self, start: int = 0) -> None:
        self.timesteps = torch.arange(4)

    def set_timesteps(self, num_inference_steps: int) -> None:
        self.timesteps = torch.arange(self.config.start, self.config.start + num_inference_steps)

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor) -> SchedulerOutput:
        self.given = (model_output, sample)
        return SchedulerOutput(prev_sample=sample)


def given(coefficients: Coefficients, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the stock step gets in place of model output x and sample x."""
    recorder = precondition(RecorderScheduler(), coefficients)
    recorder.set_timesteps(1)
    recorder.step(x, recorder.timesteps[0], x)
    given: tuple[Tensor, Tensor] = recorder.given
    return given


def test_multiplies_in_float32_and_keeps_the_dtype() -> None:
    x = noise(4, 50, 50, dtype=torch.bfloat16)
    assert torch.equal(x * torch.tensor(1.003, dtype=torch.bfloat16), x)  # what must not happen
    for scaled in given(Coefficients((1.003,), (1.003,)), x):
        assert scaled.dtype == torch.bfloat16
        assert torch.equal(scaled, (x.float() * 1.003).bfloat16())
        assert 0.2 < (scaled != x).float().mean() < 0.9
    half = noise(10, dtype=torch.float16)
    assert torch.equal(given(Coefficients((1.1,), (0.9,)), half)[1], (half.float() * 0.9).half())
    double = noise(10, dtype=torch.float64) / 3
    exact = torch.from_numpy(double.numpy() * 1.1)
    assert torch.equal(given(Coefficients((1.1,), (0.9,)), double)[0], exact)


def test_one_passes_the_very_tensor() -> None:
    x = noise(10)
    model_output, sample = given(Coefficients((1.0,), (0.9,)), x)
    assert model_output is x
    assert sample is not x
    assert torch.equal(x, noise(10)), "scaled in place"


@each_mattering
def test_the_network_sees_the_unscaled_sample(name: str) -> None:
    case, x = case_of(name), noise(1, 4, 6, 6)
    stock, ours = case.build(), precondition(case.build(), COEFFICIENTS)
    for scheduler in (stock, ours):
        scheduler.set_timesteps(4)
    if hasattr(stock, "scale_model_input"):
        t = stock.timesteps[0]
        assert torch.equal(ours.scale_model_input(x, t), stock.scale_model_input(x, t))


@each
def test_pipelines_find_the_stock_signatures(name: str) -> None:
    stock = case_of(name).build()
    ours = precondition(stock, COEFFICIENTS)
    for method in ("step", "set_timesteps"):
        signatures = [inspect.signature(getattr(s, method)) for s in (ours, stock)]
        assert signatures[0] == signatures[1]
    assert isinstance(ours, type(stock))
    x = noise(1, 4, 6, 6)
    if name == "LCM":
        ours.set_timesteps(4)
        output = ours.step(model_output=x, sample=x, timestep=ours.timesteps[0], return_dict=False)
        assert isinstance(output, tuple)


# Which coefficient belongs to which step.


@each
def test_image_to_image_begins_in_the_middle(name: str) -> None:
    """With set_begin_index where a scheduler has it, as pipelines call it, and without."""
    case = case_of(name)
    for begin in (True, False):
        runs = []
        for scheduler, by_hand in (
            (precondition(case.build(), COEFFICIENTS), IDENTITY),
            (case.build(), COEFFICIENTS),
        ):
            scheduler.set_timesteps(**case.timesteps)
            if begin and hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(2)
            runs.append(run(scheduler, case, by_hand=by_hand, first=2, reset=False))
        assert runs[0] == runs[1]
        assert len(runs[0].samples) == 2


@pytest.mark.parametrize("begin", [None, 0])
def test_two_equal_timesteps_are_told_apart_as_stock_does(begin: int | None) -> None:
    """The stock rule takes the second of two equal timesteps, unless told where to begin."""
    sigmas = [0.8, 0.8, 0.5, 0.2]
    ours = precondition(FlowMatchEulerDiscreteScheduler(), COEFFICIENTS)
    stock = FlowMatchEulerDiscreteScheduler()
    x = noise(1, 4, 6, 6)
    v = network(x, 800)
    for scheduler in (ours, stock):
        scheduler.set_timesteps(sigmas=sigmas)
        if begin is not None:
            scheduler.set_begin_index(begin)
    i = 1 if begin is None else begin
    c_eps, c_x = COEFFICIENTS.model[i], COEFFICIENTS.sample[i]
    expected = stock.step(c_eps * v, stock.timesteps[0], c_x * x).prev_sample
    assert torch.equal(ours.step(v, ours.timesteps[0], x).prev_sample, expected)


@pytest.mark.parametrize(
    ("name", "begin", "pass_on"),
    [
        # Stable Cascade hands its timesteps to `step` in the model's dtype.
        ("Wuerstchen", None, lambda t: t.bfloat16().expand(2)),
        # Where a scheduler begins is told, so its timestep need not be looked up.
        ("MiniMax", 1, lambda t: t + 0.01),
        ("Euler", 1, lambda t: t + 0.01),
    ],
)
def test_a_timestep_may_be_off_where_the_stock_scheduler_bears_it(
    name: str, begin: int | None, pass_on: Callable[[Tensor], Tensor]
) -> None:
    case = case_of(name)
    custom = {"timesteps": [1.0, 0.7, 0.4, 0.1, 0.0]}  # 0.7 is no bfloat16
    x = noise(2, 4, 6, 6)
    outputs = []
    for scheduler, c_eps, c_x in (
        (precondition(case.build(), COEFFICIENTS), 1.0, 1.0),
        (case.build(), COEFFICIENTS.model[1], COEFFICIENTS.sample[1]),
    ):
        scheduler.set_timesteps(**(case.timesteps if begin is not None else custom))
        if begin is not None:
            scheduler.set_begin_index(begin)
        torch.manual_seed(0)
        t = pass_on(scheduler.timesteps[1])
        outputs.append(scheduler.step(c_eps * x, t, c_x * x).prev_sample)
    assert torch.equal(*outputs)


def test_equal_timesteps_without_a_step_index_are_refused() -> None:
    ours = precondition(RecorderScheduler(), COEFFICIENTS)
    ours.set_timesteps(4)
    ours.timesteps[1] = ours.timesteps[0]
    x = noise(10)
    ours.step(x, ours.timesteps[2], x)
    with pytest.raises(ScheduleError, match="timestep 0; expected one that the schedule has once"):
        ours.step(x, ours.timesteps[0], x)


@each
def test_sampling_again_after_set_timesteps_repeats(name: str) -> None:
    case = case_of(name)
    ours = precondition(case.build(), COEFFICIENTS)
    assert run(ours, case) == run(ours, case)


@each
def test_stepping_past_the_end_is_an_error_in_words(name: str) -> None:
    """A scheduler that keeps no count (DDIM) may sample twice: its timesteps tell the step."""
    case = case_of(name)
    ours = precondition(case.build(), COEFFICIENTS)
    once = run(ours, case)
    if not hasattr(ours, "step_index"):
        assert run(ours, case, reset=False) == once
        return
    with pytest.raises(ScheduleError, match=r"step 5 of a schedule with 4 steps; .* set_timesteps"):
        run(ours, case, reset=False)


@each
def test_stepping_before_set_timesteps_is_an_error_in_words(name: str) -> None:
    ours = precondition(case_of(name).build(), COEFFICIENTS)
    x = noise(1, 4, 6, 6)
    with pytest.raises(QschedError, match=r"set_timesteps before step|the schedule has 1000"):
        ours.step(x, torch.tensor(999), x)


@pytest.mark.parametrize("name", ["LCM", "Euler", "FlowMatchEuler", "DDIM", "DDPM"])
def test_a_timestep_outside_the_schedule_is_an_error_in_words(name: str) -> None:
    ours = precondition(case_of(name).build(), COEFFICIENTS)
    ours.set_timesteps(4)
    x = noise(1, 4, 6, 6)
    for timestep in (123.5, torch.tensor([123.5] * 50)[:1]):
        with pytest.raises(ScheduleError, match=r"timestep 123\.5; expected one that the schedule"):
            ours.step(x, timestep, x)


@each_mattering
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_another_number_of_steps_is_an_error_when_timesteps_are_set(name: str, steps: int) -> None:
    ours = precondition(case_of(name).build(), COEFFICIENTS)
    with pytest.raises(CoefficientsError, match=f"for 4 steps, the schedule has {steps}; "):
        ours.set_timesteps(steps)
    x = noise(1, 4, 6, 6)
    with pytest.raises(CoefficientsError, match=f"for 4 steps, the schedule has {steps}; "):
        ours.step(x, ours.timesteps[0], x)
    ours.set_timesteps(4)


@pytest.mark.parametrize(
    ("build", "custom"),
    [
        (LCMScheduler, {"timesteps": [999, 499]}),
        (TCDScheduler, {"timesteps": [999, 499]}),
        (EulerDiscreteScheduler, {"timesteps": [999, 499]}),
        (EulerDiscreteScheduler, {"sigmas": [14.0, 3.0, 0.0]}),
        (DPMSolverMultistepScheduler, {"timesteps": [999, 499]}),
        (FlowMatchEulerDiscreteScheduler, {"sigmas": [1.0, 0.5]}),
        (FlowMatchEulerDiscreteScheduler, {"timesteps": [1000.0, 500.0]}),
    ],
)
def test_custom_schedules_are_counted_too(build: Any, custom: dict[str, list[float]]) -> None:
    ours = precondition(build(), COEFFICIENTS)
    with pytest.raises(CoefficientsError, match="for 4 steps, the schedule has 2; "):
        ours.set_timesteps(**custom)
    fitting = precondition(build(), Coefficients.identity(2))
    fitting.set_timesteps(**custom)


def test_timesteps_that_a_pipeline_assigns_are_counted() -> None:
    ours = precondition(DDIMScheduler(), COEFFICIENTS)
    ours.set_timesteps(4)
    ours.timesteps = ours.timesteps[:2]
    x = noise(1, 4, 6, 6)
    with pytest.raises(CoefficientsError, match="the schedule has 2"):
        ours.step(x, ours.timesteps[0], x)


# What a preconditioned scheduler is.


def through_folder(scheduler: Any, folder: Path) -> Any:
    scheduler.save_pretrained(folder)
    return type(scheduler).from_pretrained(folder)


def preconditioned_again(scheduler: Any, _: Path) -> Any:
    coefficients = coefficients_of(scheduler)
    assert coefficients is not None
    return precondition(scheduler, coefficients)


ROUND_TRIPS: dict[str, Callable[[Any, Path], Any]] = {
    "save_pretrained": through_folder,
    "from_config": lambda scheduler, _: type(scheduler).from_config(scheduler.config),
    "deepcopy": lambda scheduler, _: copy.deepcopy(scheduler),
    "pickle": lambda scheduler, _: pickle.loads(pickle.dumps(scheduler)),
    "precondition": preconditioned_again,
    "two folders": lambda s, path: through_folder(through_folder(s, path / "1"), path / "2"),
}


@pytest.mark.parametrize(
    ("name", "trip"),
    [(name, trip) for name in CASES for trip in ROUND_TRIPS]
    + [(name, "two folders") for name in OTHERS],
)
def test_a_round_trip_steps_the_same(name: str, trip: str, tmp_path: Path) -> None:
    case = case_of(name)
    ours = precondition(case.build(), COEFFICIENTS)
    again = ROUND_TRIPS[trip](ours, tmp_path)
    assert again is not ours
    assert type(again) is type(ours)
    assert coefficients_of(again) == COEFFICIENTS
    assert run(again, case) == run(case.build(), case, by_hand=COEFFICIENTS)


@pytest.mark.parametrize("trip", ["deepcopy", "pickle"])
@each_mattering
def test_a_copy_made_between_steps_goes_on(name: str, trip: str, tmp_path: Path) -> None:
    case = case_of(name)
    ours = precondition(case.build(), COEFFICIENTS)
    ours.set_timesteps(4)
    x, t = noise(1, 4, 6, 6), ours.timesteps
    x = ours.step(network(x, t[0]), t[0], x).prev_sample
    again = ROUND_TRIPS[trip](ours, tmp_path)
    steps = []
    for scheduler in (ours, again):
        torch.manual_seed(0)
        steps.append(scheduler.step(network(x, t[1]), t[1], x).prev_sample)
    assert torch.equal(*steps)


@each_mattering
def test_config_is_saved_as_numbers(name: str, tmp_path: Path) -> None:
    ours = precondition(case_of(name).build(), COEFFICIENTS)
    ours.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["model_coefficients"] == list(COEFFICIENTS.model)
    assert saved["sample_coefficients"] == list(COEFFICIENTS.sample)
    assert saved["_class_name"] == f"Preconditioned{type(case_of(name).build()).__name__}"
    assert repr(ours).startswith(saved["_class_name"])
    assert '"model_coefficients": [' in repr(ours)


@each_mattering
def test_the_given_scheduler_is_left_alone(name: str) -> None:
    case = case_of(name)
    stock = case.build()
    stock.set_timesteps(3)
    config, state = dict(stock.config), copy.deepcopy(stock.__dict__)
    run(precondition(stock, COEFFICIENTS), case)
    assert dict(stock.config) == config
    assert stock.__dict__.keys() == state.keys()
    assert all(
        torch.equal(value, state[key])
        for key, value in stock.__dict__.items()
        if isinstance(value, Tensor)
    )
    assert type(stock) is type(case.build())


@each
def test_preconditioning_again_replaces(name: str) -> None:
    case = case_of(name)
    once = precondition(case.build(), COEFFICIENTS)
    other = Coefficients.ramp(4, 1.2, 0.8)
    twice = precondition(once, other)
    assert type(twice) is type(once)
    assert coefficients_of(once) == COEFFICIENTS
    assert run(twice, case) == run(case.build(), case, by_hand=other)
    assert run(precondition(twice, IDENTITY), case) == run(case.build(), case)
    shorter = precondition(once, Coefficients.identity(2))
    assert coefficients_of(shorter) == Coefficients.identity(2)


def test_other_stock_classes_take_the_config() -> None:
    """As `EulerDiscreteScheduler.from_config(pipeline.scheduler.config)` in every notebook."""
    for stock in (LCMScheduler(), DDIMScheduler(beta_end=0.012), DDIMScheduler()):
        ours = precondition(stock, COEFFICIENTS)
        euler, plain = (EulerDiscreteScheduler.from_config(s.config) for s in (ours, stock))
        assert coefficients_of(euler) is None
        assert run(euler, CASES["Euler"]) == run(plain, CASES["Euler"])
        assert coefficients_of(precondition(euler, IDENTITY)) == IDENTITY


def test_stock_config_becomes_a_preconditioned_scheduler() -> None:
    ours = schedule.PreconditionedLCMScheduler.from_config(
        LCMScheduler(original_inference_steps=100).config,
        model_coefficients=[1.1, 1.0],
        sample_coefficients=[0.9, 1.0],
    )
    assert ours.config.original_inference_steps == 100
    assert coefficients_of(ours) == Coefficients((1.1, 1.0), (0.9, 1.0))


def test_what_was_changed_after_construction_is_kept() -> None:
    """StableDiffusionPipeline changes steps_offset so; set_shift leaves the config as it was."""
    stock = DDIMScheduler()
    stock._internal_dict = FrozenDict(dict(stock.config) | {"steps_offset": 1})
    ours = precondition(stock, COEFFICIENTS)
    assert run(ours, CASES["DDIM"]) == run(stock, CASES["DDIM"], by_hand=COEFFICIENTS)
    flow = FlowMatchEulerDiscreteScheduler()
    flow.set_shift(3.0)
    case = CASES["FlowMatchEuler"]
    assert run(precondition(flow, COEFFICIENTS), case) == run(flow, case, by_hand=COEFFICIENTS)


def zero_terminal_snr(scheduler: Any) -> Any:
    """As it is done by hand: the tables changed, the config as it was."""
    root = scheduler.alphas_cumprod.sqrt()
    scheduler.alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    scheduler.alphas_cumprod[-1] = 2**-24
    return scheduler


@pytest.mark.parametrize(
    "kind",
    [DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, TCDScheduler, UniPCMultistepScheduler],
)
@pytest.mark.parametrize("used", [False, True])
def test_tables_that_were_changed_in_place_are_carried_over(kind: Any, used: bool) -> None:
    """Also after it was sampled with, another number of steps included, and through both ways."""
    stock, untouched = zero_terminal_snr(kind()), kind()
    if used:
        stock.set_timesteps(7)
    ours = precondition(precondition(stock, Coefficients.ramp(4, 2, 2)), Coefficients.identity(4))
    images = []
    for scheduler in (stock, ours, untouched):
        scheduler.set_timesteps(4)
        x, generator = torch.ones(1, 4, 8, 8), torch.Generator().manual_seed(0)
        draws = (
            {"generator": generator}
            if "generator" in inspect.signature(scheduler.step).parameters
            else {}
        )
        for timestep in scheduler.timesteps:
            eps = 0.5 * scheduler.scale_model_input(x, timestep)
            x = scheduler.step(eps, timestep, x, **draws).prev_sample
        images.append(x)
    assert torch.equal(images[0], images[1])
    assert kind is UniPCMultistepScheduler or not torch.equal(images[0], images[2])


@each
def test_what_sampling_leaves_in_a_scheduler_is_no_change(name: str, tmp_path: Path) -> None:
    case = case_of(name)
    stock = case.build()
    run(stock, case)
    ours = precondition(stock, COEFFICIENTS)
    run(ours, case)
    precondition(ours, COEFFICIENTS).save_pretrained(tmp_path)
    assert run(precondition(ours, COEFFICIENTS), case) == run(ours, case)


def test_what_no_config_holds_is_not_saved(tmp_path: Path) -> None:
    ours = precondition(zero_terminal_snr(DDIMScheduler()), Coefficients.identity(4))
    with pytest.raises(ScheduleError, match="alphas_cumprod was changed in place"):
        ours.save_pretrained(tmp_path)
    with pytest.raises(ScheduleError, match="alphas_cumprod was changed in place"):
        copy.deepcopy(ours).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_method_that_was_replaced_is_refused() -> None:
    stock = DDIMScheduler()
    stock.step = lambda *args, **kwargs: args
    with pytest.raises(ScheduleError, match="its step was replaced on this instance"):
        precondition(stock, Coefficients.identity(4))


def test_a_config_without_or_with_broken_coefficients_is_refused() -> None:
    with pytest.raises(CoefficientsError, match=r"no model_coefficients and sample_coeff.*; use"):
        schedule.PreconditionedLCMScheduler()
    with pytest.raises(CoefficientsError, match="no sample_coefficients"):
        schedule.PreconditionedLCMScheduler(model_coefficients=[1.0])
    with pytest.raises(CoefficientsError, match=r"model\[1\] = 'x'"):
        schedule.PreconditionedLCMScheduler(
            model_coefficients=[1.0, "x"], sample_coefficients=[1.0, 1.0]
        )


def test_coefficients_of_a_stock_scheduler_are_none() -> None:
    assert coefficients_of(LCMScheduler()) is None
    assert coefficients_of(precondition(LCMScheduler(), COEFFICIENTS)) == COEFFICIENTS


def test_classes_are_attributes_of_the_module_made_on_demand() -> None:
    made = type(precondition(LCMScheduler(), COEFFICIENTS))
    assert schedule.PreconditionedLCMScheduler is made
    assert (made.__module__, made.__name__) == ("qsched.schedule", "PreconditionedLCMScheduler")
    assert issubclass(schedule.PreconditionedRecorderScheduler, RecorderScheduler)
    for nothing in ("PreconditionedHeunDiscreteScheduler", "PreconditionedCat", "LCMScheduler"):
        assert not hasattr(schedule, nothing)


def test_a_class_may_be_declared_elsewhere() -> None:
    """As an exported scheduler is, in a file of its own."""

    class PreconditionedElsewhere(Preconditioned, LCMScheduler):
        """Nothing to add."""

    class Deeper(PreconditionedElsewhere):
        """Scales once, not twice, and keeps its own step."""

        @functools.wraps(LCMScheduler.step)
        def step(self, *args: Any, **kwargs: Any) -> Any:
            self.stepped = True
            return super().step(*args, **kwargs)

    lists = {"model_coefficients": [*COEFFICIENTS.model]}
    lists["sample_coefficients"] = [*COEFFICIENTS.sample]
    expected = run(LCMScheduler(), CASES["LCM"], by_hand=COEFFICIENTS)
    assert run(PreconditionedElsewhere(**lists), CASES["LCM"]) == expected
    deeper = Deeper.from_config(LCMScheduler().config, **lists)
    assert run(deeper, CASES["LCM"]) == expected
    assert deeper.stepped


def test_two_classes_of_one_name_are_refused() -> None:
    precondition(RecorderScheduler(), COEFFICIENTS)
    namesake = type("RecorderScheduler", (RecorderScheduler,), {"__module__": "elsewhere"})
    with pytest.raises(ScheduleError, match="has a scheduler of the same name"):
        precondition(namesake(), COEFFICIENTS)


# In a pipeline.


def pipeline(scheduler: Any) -> DDPMPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    pipe = DDPMPipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image(pipe: DDPMPipeline) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    drawn: np.ndarray = pipe(generator=generator, num_inference_steps=4, output_type="np").images
    return drawn


def test_a_pipeline_folder_keeps_the_coefficients(tmp_path: Path) -> None:
    stock, ours = pipeline(LCMScheduler()), pipeline(precondition(LCMScheduler(), COEFFICIENTS))
    ours.save_pretrained(tmp_path)
    again = DDPMPipeline.from_pretrained(tmp_path, unet=ours.unet)
    again.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(image(again), image(ours))
    assert np.abs(image(ours) - image(stock)).max() > 0.01
    exact = pipeline(precondition(LCMScheduler(), IDENTITY))
    np.testing.assert_array_equal(image(exact), image(stock))


FRESH = """
import sys, numpy, torch
from diffusers import DDPMPipeline
folder = sys.argv[1]
try:
    DDPMPipeline.from_pretrained(folder)
except ValueError as error:
    print(error)
import qsched.schedule
pipe = DDPMPipeline.from_pretrained(folder)
generator = torch.Generator().manual_seed(0)
images = pipe(generator=generator, num_inference_steps=4, output_type="np").images
numpy.save(folder + "/images.npy", images)
"""


@pytest.mark.slow
def test_a_fresh_process_loads_the_pipeline_once_it_has_imported_us(tmp_path: Path) -> None:
    ours = pipeline(precondition(LCMScheduler(), COEFFICIENTS))
    ours.save_pretrained(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "import qsched.schedule before calling `from_pretrained`" in result.stdout
    difference = np.abs(np.load(tmp_path / "images.npy") - image(ours)).max()
    assert difference < 1e-4, "more than the rounding of a convolution with reloaded weights"


# What cannot be preconditioned.


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("HeunDiscreteScheduler", "calls the network 2 times per step"),
        ("FlowMatchHeunDiscreteScheduler", "calls the network 2 times per step"),
        ("KDPM2DiscreteScheduler", "calls the network 2 times per step"),
        ("KDPM2AncestralDiscreteScheduler", "calls the network 2 times per step"),
        ("PNDMScheduler", r"several times per step \(13 times for 4 steps\)"),
        ("RePaintScheduler", "jumps back and forth"),
        ("HeliosScheduler", "counts its steps anew in every stage"),
        ("HeliosDMDScheduler", "counts its steps anew in every stage"),
        ("DDIMParallelScheduler", "without its step"),
        ("DDPMParallelScheduler", "without its step"),
        ("DiscreteDDIMScheduler", "tokens"),
        ("BlockRefinementScheduler", "tokens"),
        ("EntropyBoundScheduler", "tokens"),
        ("CogVideoXDPMScheduler", "step does not begin with model_output, timestep, sample"),
        ("ScoreSdeVeScheduler", "no set_timesteps and step"),
    ],
)
def test_refuses_with_the_reason_and_what_works(name: str, reason: str) -> None:
    with pytest.raises(ScheduleError, match=f"^{name}: .*{reason}.*; what works: LCM, TCD") as no:
        precondition(getattr(diffusers, name)(), COEFFICIENTS)
    assert "\n" not in str(no.value)


def test_pndm_really_calls_the_network_13_times() -> None:
    pndm = PNDMScheduler()
    pndm.set_timesteps(4)
    assert len(pndm.timesteps) == 13


def test_refuses_subclasses_and_strangers() -> None:
    class Mine(PNDMScheduler):
        pass

    with pytest.raises(ScheduleError, match=r"Mine: .*13 times"):
        precondition(Mine(), COEFFICIENTS)
    for stranger in (object(), None, "LCMScheduler"):
        with pytest.raises(ScheduleError, match="it is no diffusers scheduler"):
            precondition(stranger, COEFFICIENTS)


def test_refuses_to_scale_a_learned_variance() -> None:
    with pytest.raises(ScheduleError, match="predicts the injected noise's variance"):
        precondition(DDPMScheduler(variance_type="learned_range"), COEFFICIENTS)


def test_several_calls_per_step_are_noticed_in_an_unknown_scheduler() -> None:
    class TwiceScheduler(RecorderScheduler):
        def set_timesteps(self, num_inference_steps: int) -> None:
            super().set_timesteps(2 * num_inference_steps - 1)

    ours = precondition(TwiceScheduler(), COEFFICIENTS)
    with pytest.raises(CoefficientsError, match="for 4 steps, the schedule has 7"):
        ours.set_timesteps(4)


def test_every_scheduler_of_diffusers_is_taken_or_refused_in_words() -> None:
    answers = {"taken": 0, "refused": 0}
    for name in dir(diffusers):
        found = getattr(diffusers, name) if name.endswith("Scheduler") else None
        if not isinstance(found, type) or not issubclass(found, SchedulerMixin):
            continue
        required = [
            parameter
            for parameter in inspect.signature(found).parameters.values()
            if parameter.default is inspect.Parameter.empty
            and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        if required:
            continue
        try:
            precondition(found(), COEFFICIENTS)
            answers["taken"] += 1
        except ScheduleError:
            answers["refused"] += 1
    assert answers["taken"] >= 20
    assert answers["refused"] >= 10
