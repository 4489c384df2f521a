"""The model over vectors and prompts, beside the dense formulas that its docstring gives."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import norm

from qsched.search import prompt_model
from qsched.search.prompt_model import Array, Data, Hyperparameters, Posterior, Row, fitted
from qsched.search.prompt_sampler import log_expected_improvement

POOL = 6


def kernel(x: Array, other: Array, lengths: Array) -> float:
    far = float(np.sqrt(5) * np.linalg.norm((x - other) / lengths))
    return (1 + far + far**2 / 3) * float(np.exp(-far))


def d(x: Array, other: Array, lengths: Array) -> float:
    origin = np.zeros_like(x)
    sides = kernel(x, origin, lengths) + kernel(origin, other, lengths)
    return float(kernel(x, other, lengths) - sides + 1)


def dense(data: Data, hyper: Hyperparameters, points: Array) -> tuple[Array, Array]:
    """Mean and deviation of h by loops over rows and a general solver."""
    lengths, (f, g, e) = np.exp(np.array(hyper.lengths)), np.exp(np.array(hyper.variances))
    rows = list(zip(data.place, data.prompt, strict=True))

    def covariance(one: tuple[int, int], other: tuple[int, int]) -> float:
        same, apart = one[1] == other[1], d(data.points[one[0]], data.points[other[0]], lengths)
        rough = e * same * (1 + (one[0] == other[0]))
        jitter = (one == other) * prompt_model.JITTER * (f + g)
        return float((f + g * same) * apart + rough + jitter)

    between = np.array([[covariance(one, other) for other in rows] for one in rows])
    pooled = f + g / POOL
    across = np.array([[pooled * d(x, data.points[i], lengths) for i, _ in rows] for x in points])
    mean = across @ np.linalg.solve(between, data.y)
    own = np.array([pooled * d(x, x, lengths) for x in points])
    variance = own - np.einsum("ij,ji->i", across, np.linalg.solve(between, across.T))
    return mean, np.sqrt(variance) * data.unit


@pytest.fixture
def data() -> Data:
    random = np.random.default_rng(0)
    points = random.normal(0, 0.2, (9, 3))
    rows: list[Row] = [
        (place, int(prompt), float(random.normal() - 4 * points[place, 0]))
        for place in range(9)
        for prompt in random.choice(POOL, 2, replace=False)
    ]
    return Data(points, [rows[k] for k in random.permutation(len(rows))])


@pytest.fixture
def hyper() -> Hyperparameters:
    return Hyperparameters((-1.0, 0.2, 0.5), (0.3, -1.0, -2.0))


def test_the_posterior_is_the_dense_one(data: Data, hyper: Hyperparameters) -> None:
    points = np.random.default_rng(1).normal(0, 0.3, (5, 3))
    mean, deviation = Posterior(data, hyper, pool=POOL).moments(points)
    expected, apart = dense(data, hyper, points)
    np.testing.assert_allclose(mean, expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(deviation, apart, rtol=1e-6)


def test_the_identity_is_known_and_nothing_else_is(hyper: Hyperparameters) -> None:
    none = Data(np.empty((0, 3)), [])
    mean, deviation = Posterior(none, hyper, pool=POOL).moments(np.array([[0.0] * 3, [1.0] * 3]))
    assert mean.tolist() == [0.0, 0.0]
    assert deviation[0] < 1e-5 < 0.5 < deviation[1]


def test_what_is_pending_is_expected_to_come_out_as_expected(
    data: Data, hyper: Hyperparameters
) -> None:
    """It changes no expectation; where it lies, h becomes more certain."""
    where = np.array([[0.6, -0.4, 0.2]])
    with_pending = Data(np.vstack([data.points, where]), list(rows_of(data)))
    before = Posterior(data, hyper, pool=POOL).moments(where)
    after = Posterior(
        with_pending, hyper, pool=POOL, pending=[(9, prompt) for prompt in range(POOL)]
    ).moments(where)
    np.testing.assert_allclose(after[0], before[0], rtol=1e-9)
    assert after[1][0] < 0.5 * before[1][0]


def rows_of(data: Data) -> list[Row]:
    found = zip(data.place, data.prompt, data.y, strict=True)
    return [(int(place), int(prompt), float(y)) for place, prompt, y in found]


def test_the_gradient_is_that_of_the_loss(data: Data, hyper: Hyperparameters) -> None:
    mean = Hyperparameters.prior(3).vector

    def loss(theta: Array) -> float:
        return prompt_model._loss(data, theta, mean)[0]

    _, gradient = prompt_model._loss(data, hyper.vector, mean)
    np.testing.assert_allclose(gradient, approx_fprime(hyper.vector, loss, 1e-6), atol=1e-4)


def test_the_likelihood_is_the_normal_density_of_the_differences(
    data: Data, hyper: Hyperparameters
) -> None:
    """Two sets of hyperparameters differ by it and by their priors."""
    mean = Hyperparameters.prior(3).vector
    other = Hyperparameters((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    found = [prompt_model._loss(data, each.vector, mean)[0] for each in (hyper, other)]
    expected = []
    for each in (hyper, other):
        lengths, (f, g, e) = np.exp(np.array(each.lengths)), np.exp(np.array(each.variances))
        rows = list(zip(data.place, data.prompt, strict=True))
        between = np.array(
            [
                [
                    (f + g * (p == q)) * d(data.points[i], data.points[j], lengths)
                    + e * (p == q) * (1 + (i == j))
                    for j, q in rows
                ]
                for i, p in rows
            ]
        )
        y = data.y / data.unit
        likelihood = 0.5 * (y @ np.linalg.solve(between, y) + np.linalg.slogdet(between)[1])
        widths = np.array(
            [prompt_model.LENGTH_PRIOR[1]] * 3 + [w for _, w in prompt_model.VARIANCE_PRIORS]
        )
        expected.append(likelihood + 0.5 * (((each.vector - mean) / widths) ** 2).sum())
    assert found[0] - found[1] == pytest.approx(expected[0] - expected[1], rel=1e-5)


def test_fitting_tells_the_axis_that_matters() -> None:
    random = np.random.default_rng(2)
    points = random.uniform(-0.5, 0.5, (40, 4))
    rows: list[Row] = [
        (place, place % POOL, float(np.sin(6 * points[place, 2])) + 0.05 * random.normal())
        for place in range(40)
    ]
    found = fitted(Data(points, rows), Hyperparameters.prior(4))
    assert np.argmin(found.lengths) == 2
    assert found == fitted(Data(points, rows), Hyperparameters.prior(4))  # to the bit


@pytest.mark.parametrize("z", [-5000.0, -40.0, -3.0, -1.0, 0.0, 2.0])
def test_the_expected_improvement_does_not_underflow(z: float) -> None:
    found = log_expected_improvement(np.array([z * 0.1]), np.array([0.1]), 0.0)[0]
    if z >= -3:
        expected = np.log(0.1 * (norm.pdf(z) + z * norm.cdf(z)))
    else:  # its asymptotic series
        expected = np.log(0.1) + norm.logpdf(z) - 2 * np.log(-z) + np.log1p(-3 / z**2)
    assert found == pytest.approx(expected, abs=1e-3 + 1e-6 * z**2)
