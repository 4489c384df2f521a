"""A proposal is a pure function of the finished trials, the seed and the slot."""

import subprocess
import sys

import pytest

from qsched.coefficients import Bounds, parametrisation
from qsched.samplers import Finished, propose

SPACE = parametrisation("ramp", 4)
BOUNDS = Bounds(0.8, 1.2)


def history(count: int) -> list[Finished]:
    vectors = [(0.8 + 0.4 * i / count, 1.2 - 0.4 * (i * 7 % count) / count) for i in range(count)]
    return [Finished(v, -((v[0] - 1.1) ** 2) - (v[1] - 0.9) ** 2) for v in vectors]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("trials", [0, 3, 25])
def test_the_same_arguments_give_the_same_vector(sampler: str, trials: int) -> None:
    def proposed(seed: int, slot: int) -> tuple[float, ...]:
        return propose(sampler, SPACE, BOUNDS, history(trials), seed=seed, slot=slot)

    assert proposed(0, 5) == proposed(0, 5)
    assert proposed(0, 5) != proposed(0, 6)
    assert proposed(0, 5) != proposed(1, 5)
    assert all(value in BOUNDS for value in proposed(0, 5))


def test_another_process_proposes_the_same() -> None:
    code = (
        "from test_samplers import *; "
        "print(propose('tpe', SPACE, BOUNDS, history(25), seed=3, slot=25))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        cwd=__file__.rpartition("/")[0],
    ).stdout  # fmt: skip
    assert printed.strip() == str(propose("tpe", SPACE, BOUNDS, history(25), seed=3, slot=25))


@pytest.mark.parametrize("name", ["constant", "ramp", "ramp2", "per-step"])
def test_slot_0_is_the_identity(name: str) -> None:
    space = parametrisation(name, 4)
    vector = propose("tpe", space, BOUNDS, [], seed=9, slot=0)
    assert space.coefficients(vector).is_identity


def test_tpe_learns() -> None:
    """After 40 trials TPE looks nearer to the best than chance does, on average."""
    trials = history(40)
    learnt = [propose("tpe", SPACE, BOUNDS, trials, seed=s, slot=40) for s in range(10)]
    chance = [propose("random", SPACE, BOUNDS, trials, seed=s, slot=40) for s in range(10)]

    def distance(vectors: list[tuple[float, ...]]) -> float:
        return sum((v[0] - 1.1) ** 2 + (v[1] - 0.9) ** 2 for v in vectors)

    assert distance(learnt) < 0.7 * distance(chance)
