"""How rough the demo's recorded landscape is, and what a surrogate explains of it.

    python -m bench.search.roughness [--json]

*Trend* is the polynomial that `bench.search` replays searches on, fitted per prompt; R2 and RMS
are those of points that it was not fitted to, of JAQ's mean over the prompts unless said.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from bench.printing import Table, show
from bench.search.recording import BOX, DISTANCES, PROMPTS, SIDE, demo, load_recording
from bench.search.replay import Array, Polynomial, held_out, prompt_values
from bench.search.searches import SPACES, landscape, recorded

DRAWS = 200


def explained(truth: Array, guess: Array) -> dict[str, float]:
    """R2 and RMS error of the mean over prompts, and of each prompt's values; (P, N) both."""

    def r2(a: Array, b: Array) -> float:
        return float(1 - ((a - b) ** 2).sum() / ((a - a.mean(axis=0)) ** 2).sum())

    means = truth.mean(axis=1), guess.mean(axis=1)
    return {
        "R2": r2(*means),
        "RMS": float(np.sqrt(((means[0] - means[1]) ** 2).mean())),
        "spread": float(means[0].std()),
        "R2 of a prompt": r2(truth, guess),
    }


def surrogates() -> Table:
    """What was recorded between the grid's points, as each surrogate has it."""
    from scipy.interpolate import RegularGridInterpolator

    grid, values = recorded("ramp")
    between = load_recording("ramp-between")
    if between is None or len(grid.vectors) < SIDE**2:
        return []
    truth = prompt_values(between, demo().objective)
    order = np.lexsort((grid.vectors[:, 1], grid.vectors[:, 0]))
    axis = np.linspace(*BOX, SIDE)
    square = values[order].reshape(SIDE, SIDE, PROMPTS)
    rows = []
    for name, method in (("bilinear", "linear"), ("bicubic", "cubic")):
        found = RegularGridInterpolator((axis, axis), square, method=method)(between.vectors)
        rows.append({"surrogate": name, **explained(truth, found)})
    for degree in (1, 2, 4, 6, 8):
        found = Polynomial(degree)(grid.vectors, values)(between.vectors)
        rows.append({"surrogate": f"trend of degree {degree}", **explained(truth, found)})
    drawn = np.array(
        [
            [landscape("ramp").drawn(1000 + salt).values(vector) for vector in between.vectors]
            for salt in range(DRAWS)
        ]
    )
    rows.append({"surrogate": "trend and residual", **explained(truth, drawn[0])})
    best, spread = drawn.mean(axis=2).max(axis=1), drawn.mean(axis=2).std(axis=1)
    for name, real, found in (
        ("best of these 100", truth.mean(axis=1).max(), best),
        ("spread of these 100", truth.mean(axis=1).std(), spread),
    ):
        low, middle, high = np.quantile(found, [0.05, 0.5, 0.95])
        rows.append(
            {
                "surrogate": name,
                "real": float(real),
                "surrogate's median": float(middle),
                "5 %": float(low),
                "95 %": float(high),
            }
        )
    return rows


def roughness() -> Table:
    """How much JAQ differs between two ramps that lie close, as a deviation of one of them."""
    close = load_recording("ramp-close")
    if close is None:
        return []
    values = prompt_values(close, demo().objective)
    groups = values[: len(values) // 6 * 6].reshape(-1, 6, PROMPTS)
    rows = []
    for place, distance in enumerate(DISTANCES, start=1):
        apart = groups[:, place] - groups[:, 0]
        rows.append(
            {
                "distance": f"{distance:g}",
                "of a prompt": float(np.sqrt((apart**2).mean() / 2)),
                "of the mean": float(np.sqrt((apart.mean(axis=1) ** 2).mean() / 2)),
            }
        )
    return rows


def summits(spaces: Sequence[str]) -> Table:
    """The best that was recorded in each space, and what of it the trend holds."""
    rows = []
    for space in spaces:
        found, values = recorded(space)
        fit = SPACES[space].trend
        smooth = fit(found.vectors, values)(found.vectors).mean(axis=1)
        means = values.mean(axis=1)
        best = int(means.argmax())
        rough = slice(*SPACES[space].rough)
        guess = held_out(found.vectors, values, fit)
        rows.append(
            {
                "space": space,
                "points": len(means),
                "trend": str(fit),
                "R2": explained(values, guess)["R2"],
                "roughness": explained(values[rough], guess[rough])["RMS"],
                "best": float(means[best]),
                "its trend": float(smooth[best]),
                "best trend": float(smooth.max()),
                "at": " ".join(f"{c:.3f}" for c in found.vectors[best]),
                "top of trend": " ".join(f"{c:.3f}" for c in found.vectors[smooth.argmax()]),
            }
        )
    return rows


def cost_of_luck(deviations: float, batch: int) -> float:
    """The median of full trials' worth of images until a candidate's mean is so many deviations
    of its own above the mean of all, for who wastes none.

    All candidates are equal but for independent luck with each prompt, and one is given up as soon
    as going on costs more than it is worth: dynamic programming over the sum of the prompts seen so
    far, at the price of an image at which the best policy just breaks even. A rough model of a
    search that knows the top of the trend before its first image.
    """
    goal = deviations * np.sqrt(PROMPTS)
    step = 0.02
    sums = np.arange(goal - 25, goal + 15, step)
    edge = int(6 * np.sqrt(batch) / step)
    kernel = norm.pdf(np.arange(-edge, edge + 1) * step, scale=np.sqrt(batch)) * step

    def gain(price: float) -> float:
        worth = (sums >= goal).astype(float)
        for left in range(0, PROMPTS, batch):
            wide = np.concatenate([np.zeros(edge), worth, np.full(edge, worth[-1])])
            ahead = np.convolve(wide, kernel, "valid")[: len(sums)] - price * batch
            worth = ahead if left == PROMPTS - batch else np.maximum(ahead, 0.0)
        return float(np.interp(0.0, sums, worth))

    price = brentq(gain, 1e-7, 0.5)
    return float(np.log(2) / price / PROMPTS)


def limits() -> Table:
    """What it takes at the least to be as lucky as the best of the official grid."""
    found, values = recorded("ramp")
    fit = SPACES["ramp"].trend
    rough = float((values - held_out(found.vectors, values, fit)).mean(axis=1).std())
    top = float(fit(found.vectors, values)(found.vectors).mean(axis=1).max())
    best = float(values.mean(axis=1).max())
    away = (best - top) / rough
    return [
        {
            "prompts at a time": batch,
            "deviations above the top": away,
            "full trials' worth": round(cost_of_luck(away, batch)),
        }
        for batch in (1, 2, 4, 8, 16)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    tables = {
        "what was recorded": summits(
            [space for space in SPACES if load_recording(SPACES[space].recording)]
        ),
        "between two ramps that lie close": roughness(),
        "least effort to reach the grid's best": limits(),
        "surrogates of 100 ramps between the grid's points": surrogates(),
    }
    show(tables, as_json=options.json)


if __name__ == "__main__":
    main()
