"""A Gaussian process over (vector, prompt), seen through differences to the identity.

    y(x, p) = v(x, p) - v(0, p),    v(x, p) = f(x) + g_p(x) + e(x, p)

`v` is the value of an image under the vector `x`, `0` the identity's. `f` is what all prompts
share, `g_p` what a prompt has of its own, independent between prompts; both have the same
Matern-5/2 correlation with a length for each axis, and variances of their own. `e` is the
roughness: independent from vector to vector and prompt to prompt. The identity's own value stands
in every difference, so that

    cov(y(x, p), y(x', p')) = (s_f + s_g [p = p']) d(x, x') + s_e [p = p'] (1 + [x = x'])
    d(x, x') = k(x, x') - k(x, 0) - k(0, x') + k(0, 0)

with no mean left to choose. What is searched is the mean over a pool of P prompts,

    h(x) = f(x) - f(0) + mean_p(g_p(x) - g_p(0)),    cov(h(x), y(x', p)) = (s_f + s_g / P) d(x, x')

Lengths and variances are the most probable ones under log-normal priors (MAP); the lengths' grow
with the dimension (Hvarfner et al. 2024, arXiv 2402.02229). Plain numpy and scipy, exact; one
thread, so that the same rows give the same numbers to the bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

Array = NDArray[np.float64]
Row = tuple[int, int, float]
"""A measured difference: the vector's place, the prompt, and the difference to the identity."""

SQRT5 = math.sqrt(5.0)
JITTER = 1e-8
"""Added to the diagonal, as a share of the variances."""

LENGTH_PRIOR = (math.sqrt(2.0), math.sqrt(3.0))
"""Mean and deviation of a length's logarithm in one dimension; in d dimensions the mean grows by
log(d) / 2."""
VARIANCE_PRIORS = ((0.0, 1.0), (math.log(0.2), 1.0), (math.log(0.1), 1.0))
"""Of the logarithms of s_f, s_g and s_e, in units of the mean square of the differences."""
LIMITS = (-6.0, 6.0)
"""Of all logarithms, around their priors' means."""
ITERATIONS = 60


@dataclass(frozen=True)
class Hyperparameters:
    """Logarithms of the lengths, one an axis, and of s_f, s_g, s_e."""

    lengths: tuple[float, ...]
    variances: tuple[float, float, float]

    @classmethod
    def prior(cls, dimension: int) -> "Hyperparameters":
        """The priors' means."""
        mean = LENGTH_PRIOR[0] + 0.5 * math.log(dimension)
        return cls(
            (mean,) * dimension,
            (VARIANCE_PRIORS[0][0], VARIANCE_PRIORS[1][0], VARIANCE_PRIORS[2][0]),
        )

    @property
    def vector(self) -> Array:
        """All of them, lengths first."""
        return np.array([*self.lengths, *self.variances])

    @classmethod
    def of(cls, vector: Array) -> "Hyperparameters":
        """The inverse of `vector`."""
        lengths, variances = vector[:-3], vector[-3:]
        f, g, e = map(float, variances)
        return cls(tuple(map(float, lengths)), (f, g, e))


class Data:
    """Measured differences: `points` (V, d), the vectors with the identity at the origin, and
    `rows`, some for each of them."""

    def __init__(self, points: Array, rows: Sequence[Row]) -> None:
        ordered = sorted(rows, key=lambda row: row[0])
        self.points = np.asarray(points, dtype=float)
        self.place = np.array([row[0] for row in ordered], dtype=int)
        self.prompt = np.array([row[1] for row in ordered], dtype=int)
        self.y = np.array([row[2] for row in ordered], dtype=float)
        self.unit = math.sqrt(float(np.mean(self.y**2))) if len(ordered) else 1.0
        self.unit = self.unit or 1.0

    def __len__(self) -> int:
        return len(self.y)


def fitted(data: Data, start: Hyperparameters) -> Hyperparameters:
    """The most probable lengths and variances, looked for from `start`."""
    if not len(data):
        return start
    mean = Hyperparameters.prior(data.points.shape[1]).vector
    bounds = [(centre + LIMITS[0], centre + LIMITS[1]) for centre in mean]
    with threadpool_limits(1):
        found = minimize(
            lambda theta: _loss(data, theta, mean),
            start.vector,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": ITERATIONS},
        )
    return Hyperparameters.of(found.x)


class Posterior:
    """What is known of h, the mean over a pool of `pool` prompts, after some rows.

    `pending`: (place, prompt) of what is being measured: it makes h more certain where it lies and
    changes no expectation, as if it came out as expected (the kriging believer).
    """

    def __init__(
        self,
        data: Data,
        hyper: Hyperparameters,
        *,
        pool: int,
        pending: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._lengths = np.exp(np.array(hyper.lengths))
        f, g, e = np.exp(np.array(hyper.variances))
        self._pooled = float(f + g / pool)
        self._points = data.points
        self._unit = data.unit
        place = np.array([*data.place, *(each for each, _ in pending)], dtype=int)
        prompt = np.array([*data.prompt, *(each for _, each in pending)], dtype=int)
        self._place, known = place, len(data)
        with threadpool_limits(1):
            difference = _difference(_matern(_scaled_distance(data.points, self._lengths)))
            covariance = _covariance(difference, place, prompt, float(f), float(g), float(e))
            self._lower = cho_factor(covariance, lower=True)[0] if len(place) else covariance
            weights = np.zeros(len(place))
            if known:
                part = (self._lower[:known, :known], True)
                weights[:known] = cho_solve(part, data.y / data.unit)
        self._weights = weights

    def mean(self, points: Array) -> Array:
        """The expectation of h at `points` (N, d), (N,)."""
        with threadpool_limits(1):
            across: Array = self._across(points) @ self._weights * self._unit
        return across

    def moments(self, points: Array) -> tuple[Array, Array]:
        """The expectation and the standard deviation of h at `points` (N, d), (N,) each."""
        with threadpool_limits(1):
            across = self._across(points)
            mean = across @ self._weights * self._unit
            origin = np.zeros((1, points.shape[1]))
            own = 2 * (1 - _matern(_cross(points, origin, self._lengths))[:, 0]) * self._pooled
            if len(self._place):
                solved = solve_triangular(
                    self._lower, across.T, lower=True, check_finite=False, overwrite_b=True
                )
                own = own - np.einsum("ij,ij->j", solved, solved)
        return mean, np.sqrt(np.maximum(own, 1e-12)) * self._unit

    def _across(self, points: Array) -> Array:
        """cov(h(points), rows), (N, n)."""
        origin = np.zeros((1, points.shape[1]))
        to_identity = _matern(_cross(points, origin, self._lengths))
        of_rows = _matern(_cross(origin, self._points, self._lengths))
        between = _matern(_cross(points, self._points, self._lengths))
        found: Array = (self._pooled * (between - to_identity - of_rows + 1))[:, self._place]
        return found


def _covariance(
    difference: Array, place: Array, prompt: Array, f: float, g: float, e: float
) -> Array:
    """cov(y, y'), (n, n), from d between the vectors (V, V)."""
    same = prompt[:, None] == prompt[None, :]
    covariance = (f + g * same) * difference[np.ix_(place, place)] + e * same
    covariance[np.diag_indices_from(covariance)] += e + JITTER * (f + g)
    found: Array = covariance
    return found


def _loss(data: Data, theta: Array, mean: Array) -> tuple[float, Array]:
    """The negative logarithm of likelihood times priors, and its gradient, in `theta`."""
    dimension = data.points.shape[1]
    lengths = np.exp(theta[:dimension])
    f, g, e = map(float, np.exp(theta[dimension:]))
    distance = _scaled_distance(data.points, lengths)
    difference = _difference(_matern(distance))
    same = (data.prompt[:, None] == data.prompt[None, :]).astype(float)
    lower = np.linalg.cholesky(_covariance(difference, data.place, data.prompt, f, g, e))
    inverse = cho_solve((lower, True), np.eye(len(data)), check_finite=False)
    y = data.y / data.unit
    weights = inverse @ y
    likelihood = 0.5 * y @ weights + np.log(np.diag(lower)).sum()
    outer = 0.5 * (inverse - np.outer(weights, weights))  # d loss / d covariance
    by_vector = _summed(outer, data.place, len(data.points))
    by_vector_same = _summed(outer * same, data.place, len(data.points))
    gradient = np.empty_like(theta)
    gradient[dimension] = f * (by_vector * difference).sum()
    gradient[dimension + 1] = g * (by_vector_same * difference).sum()
    gradient[dimension + 2] = e * ((outer * same).sum() + np.trace(outer))
    # d is a difference of correlations: its derivatives are taken on the vectors and the identity.
    shared = f * by_vector + g * by_vector_same
    sides = shared.sum(axis=1)
    extended = np.empty((len(sides) + 1, len(sides) + 1))
    extended[1:, 1:] = shared
    extended[0, 1:] = extended[1:, 0] = -sides
    extended[0, 0] = sides.sum()
    slope = extended * (5 / 3) * (1 + SQRT5 * distance) * np.exp(-SQRT5 * distance)
    points = np.vstack([np.zeros(dimension), data.points]) / lengths
    around = slope.sum(axis=1)
    gradient[:dimension] = 2 * (around @ points**2 - np.einsum("ij,ij->j", points, slope @ points))
    widths = np.array([LENGTH_PRIOR[1]] * dimension + [width for _, width in VARIANCE_PRIORS])
    off = (theta - mean) / widths
    return likelihood + 0.5 * off @ off, gradient + off / widths


def _summed(matrix: Array, place: Array, points: int) -> Array:
    """(n, n) summed over the rows of each vector, (V, V); `place` is sorted."""
    starts = np.searchsorted(place, np.arange(points))
    present = np.diff(np.append(starts, len(place))) > 0
    found = np.zeros((points, points))
    sums = np.add.reduceat(np.add.reduceat(matrix, starts[present], 0), starts[present], 1)
    found[np.ix_(present, present)] = sums
    return found


def _scaled_distance(points: Array, lengths: Array) -> Array:
    """Distances between the identity, first, and the vectors, in lengths, (V + 1, V + 1)."""
    every = np.vstack([np.zeros(points.shape[1]), points])
    return _cross(every, every, lengths)


def _cross(one: Array, other: Array, lengths: Array) -> Array:
    one, other = one / lengths, other / lengths
    square = (one**2).sum(1)[:, None] + (other**2).sum(1)[None, :] - 2 * one @ other.T
    found: Array = np.sqrt(np.maximum(square, 0.0))
    return found


def _matern(distance: Array) -> Array:
    """The Matern-5/2 correlation."""
    scaled = SQRT5 * distance
    found: Array = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
    return found


def _difference(correlation: Array) -> Array:
    """d between the vectors, (V, V), from correlations with the identity in front."""
    to_identity = correlation[0, 1:]
    found: Array = correlation[1:, 1:] - to_identity[:, None] - to_identity[None, :] + 1
    return found
