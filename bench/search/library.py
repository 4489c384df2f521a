"""Our Gaussian process (`qsched.search.prompt_model`) beside BoTorch's, on the same rows.

    python -m bench.search.library [--dimension 2] [--scores 100] [--json]

Without BoTorch only our half is measured. To measure both, in an environment of its own:

    pip install botorch

Each fit starts at the priors' own values and takes at most ITERATIONS steps, on one
thread; seconds are of its CPU time, so that a busy machine counts little. A proposal's posterior
is what a fitted model needs for the moments of 1,024 candidates. R2 is that of the pool's mean at
points near the identity that no model was told, their roughness included.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from bench.printing import Table, show
from bench.search.recording import PROMPTS, demo
from bench.search.replay import identity_values
from bench.search.searches import SPACES, recorded
from qsched.search.prompt_model import (
    ITERATIONS,
    VARIANCE_PRIORS,
    Data,
    Hyperparameters,
    Posterior,
    Row,
    fitted,
)

Array = NDArray[np.float64]
Moments = Callable[[Array], tuple[Array, Array]]
"""Of a fitted model: the mean and the deviation of the pool's mean at points (N, d)."""

POINTS = {2: ("ramp", slice(None)), 8: ("per-step", slice(1, None, 2)), 16: None}
"""{dimension: the space and which of its points lie near the identity}; None: made up."""
SCORES = (100, 400, 1600)
PER_VECTOR = 4
HELD_OUT = 400
CANDIDATES = 1024
SEEDS = 3


@dataclass(frozen=True)
class Case:
    """What a model is told, and what it is asked: `points` (N, d) and their pool's `means`."""

    data: Data
    points: Array
    means: Array
    candidates: Array


def differences(dimension: int) -> tuple[Array, Array]:
    """Offsets to the identity in shares of the box (N, d), and the differences (N, prompts)."""
    known = POINTS[dimension]
    if known is None:
        return made_up(dimension)
    space, near = known
    recording, values = recorded(space)
    low, high = SPACES[space].box
    identity = identity_values(recording, demo().objective)
    return (recording.vectors[near] - 1.0) / (high - low), values[near] - identity


def made_up(dimension: int) -> tuple[Array, Array]:
    """A bowl, prompts that lean to other sides, and noise: for the time alone."""
    random = np.random.default_rng(5)
    points = random.normal(0, 0.15, (1500, dimension)).clip(-0.5, 0.5)
    leaning = 0.3 * random.normal(size=(dimension, PROMPTS))
    values = points @ leaning - 4 * (points**2).sum(axis=1, keepdims=True)
    return points, values + random.normal(0, 0.3, values.shape)


def case(dimension: int, scores: int, seed: int) -> Case:
    """Vectors with a few prompts each, dealt so that all are used equally often."""
    random = np.random.default_rng(seed)
    points, values = differences(dimension)
    order = random.permutation(len(points))
    held, told = order[:HELD_OUT], order[HELD_OUT:][: scores // PER_VECTOR]
    decks = np.concatenate([random.permutation(PROMPTS) for _ in range(scores // PROMPTS + 1)])
    rows: list[Row] = [
        (at // PER_VECTOR, int(prompt), float(values[told[at // PER_VECTOR], prompt]))
        for at, prompt in enumerate(decks[:scores])
    ]
    candidates = random.uniform(-0.5, 0.5, (CANDIDATES, dimension))
    return Case(Data(points[told], rows), points[held], values[held].mean(axis=1), candidates)


def ours(data: Data) -> Callable[[], Moments]:
    hyper = fitted(data, Hyperparameters.prior(data.points.shape[1]))
    return lambda: Posterior(data, hyper, pool=PROMPTS).moments


def rows_of(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, d + 1) points with their prompt, and (n, 1) differences in the data's unit."""
    told = np.column_stack([data.points[data.place], data.prompt])
    return torch.from_numpy(told), torch.from_numpy(data.y / data.unit)[:, None]


def same_kernel(data: Data) -> Callable[[], Moments]:
    """BoTorch's SingleTaskGP with our covariance as a kernel of GPyTorch's.

    The identity's roughness and the vectors' are two numbers here, and priors lie on lengths and
    not on their logarithms, as BoTorch has it. The prompt -1 is the pool's mean.
    """
    import gpytorch
    from botorch.models import SingleTaskGP
    from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior

    class Differences(gpytorch.kernels.Kernel):  # type: ignore[misc]
        def __init__(self, dimension: int) -> None:
            super().__init__()
            self.matern = get_covar_module_with_dim_scaled_prior(dimension, use_rbf_kernel=False)
            means = torch.tensor([mean for mean, _ in VARIANCE_PRIORS], dtype=torch.double)
            self.register_parameter("variances", torch.nn.Parameter(means.clone()))
            self.register_prior("known", gpytorch.priors.NormalPrior(means, 1.0), "variances")

        def forward(
            self, one: torch.Tensor, other: torch.Tensor, diag: bool = False, **_: Any
        ) -> torch.Tensor:
            x, p, y, q = one[..., :-1], one[..., -1:], other[..., :-1], other[..., -1:]
            q = q if diag else q.mT
            to_x = self.matern.forward(x, torch.zeros_like(x[..., :1, :]))
            to_y = self.matern.forward(y, torch.zeros_like(y[..., :1, :]))
            between = self.matern.forward(x, y, diag=diag)
            between = between[..., None] if diag else between
            difference = between - to_x - (to_y if diag else to_y.mT) + 1
            pooled = (p < 0) | (q < 0)
            same = torch.where(pooled, 1 / PROMPTS, (p == q).double())
            f, g, e = self.variances.exp()
            found: torch.Tensor = (f + g * same) * difference + e * same * ~pooled
            return found[..., 0] if diag else found

    noise = gpytorch.likelihoods.GaussianLikelihood(
        noise_prior=gpytorch.priors.LogNormalPrior(*VARIANCE_PRIORS[2]),
        noise_constraint=gpytorch.constraints.GreaterThan(1e-4, None, initial_value=0.1),
    )
    x, y = rows_of(data)
    mean = gpytorch.means.ZeroMean()
    kernel = Differences(data.points.shape[1])
    model = SingleTaskGP(
        x, y, likelihood=noise, covar_module=kernel, mean_module=mean, outcome_transform=None
    )
    return asked(model, data, lambda points: np.column_stack([points, np.full(len(points), -1)]))


def multi_task(data: Data) -> Callable[[], Moments]:
    """BoTorch's MultiTaskGP as it comes, with a prompt a task, and Matern-5/2."""
    from botorch.acquisition.objective import ScalarizedPosteriorTransform
    from botorch.models import MultiTaskGP
    from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior

    x, y = rows_of(data)
    kernel = get_covar_module_with_dim_scaled_prior(x.shape[1] - 1, use_rbf_kernel=False)
    model = MultiTaskGP(x, y, task_feature=-1, covar_module=kernel, all_tasks=list(range(PROMPTS)))
    pool = ScalarizedPosteriorTransform(torch.full((PROMPTS,), 1 / PROMPTS, dtype=torch.double))
    return asked(model, data, lambda points: points, posterior_transform=pool)


def asked(
    model: Any, data: Data, inputs: Callable[[Array], Array], **options: Any
) -> Callable[[], Moments]:
    """Fits a model of BoTorch; each of its posteriors starts without what an earlier one kept."""
    from botorch.optim.fit import fit_gpytorch_mll_scipy
    from gpytorch.mlls import ExactMarginalLogLikelihood

    likelihood = ExactMarginalLogLikelihood(model.likelihood, model)
    likelihood.train()
    fit_gpytorch_mll_scipy(likelihood, options={"maxiter": ITERATIONS})
    likelihood.eval()

    def moments(points: Array) -> tuple[Array, Array]:
        with torch.no_grad():
            found = model.posterior(torch.from_numpy(inputs(points))[:, None], **options)
            mean, deviation = found.mean.flatten(), found.variance.sqrt().flatten()
        return mean.numpy() * data.unit, deviation.numpy() * data.unit

    def fresh() -> Moments:
        model.train()
        model.eval()
        return moments

    return fresh


MODELS = {"ours": ours, "BoTorch, our kernel": same_kernel, "BoTorch, MultiTaskGP": multi_task}


def measured(model: str, given: Case) -> tuple[float, float, float]:
    """R2, and the CPU seconds of the fit and of a proposal's posterior."""
    began = time.process_time()
    posterior = MODELS[model](given.data)
    between = time.process_time()
    posterior()(given.candidates)
    ended = time.process_time()
    off = given.means - posterior()(given.points)[0]
    r2 = 1 - float((off**2).mean() / given.means.var())
    return r2, between - began, ended - between


def table(dimension: int, scores: int) -> Iterator[dict[str, Any]]:
    cases = [case(dimension, scores, seed) for seed in range(SEEDS)]
    for model in MODELS if find_spec("botorch") else ["ours"]:
        found = zip(*(measured(model, each) for each in cases), strict=True)
        r2, fit, proposal = map(statistics.median, found)
        yield {
            "dimensions": dimension,
            "scores": scores,
            "model": model,
            "R2": r2 if POINTS[dimension] else "",
            "fit, CPU s": fit,
            "1,024 candidates, CPU s": proposal,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimension", type=int, choices=POINTS, action="append")
    parser.add_argument("--scores", type=int, choices=SCORES, action="append")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: Table = []
    with threadpool_limits(1):
        for dimension in options.dimension or POINTS:
            for scores in options.scores or SCORES:
                rows += table(dimension, scores)
    show({"A library's Gaussian process or ours": rows}, as_json=options.json)


if __name__ == "__main__":
    main()
