"""A proposal is a pure function of the finished trials, the seed and the slot."""

import subprocess
import sys

import pytest

from qsched.coefficients import Bounds, parametrisation
from qsched.samplers import Proposer

SPACE = parametrisation("ramp", 4)
BOUNDS = Bounds(0.8, 1.2)


def value(vector: tuple[float, ...]) -> float:
    return -((vector[0] - 1.1) ** 2) - (vector[1] - 0.9) ** 2


def proposer(sampler: str, trials: int, *, seed: int = 0) -> Proposer:
    """One that knows `trials` finished trials."""
    made = Proposer(sampler, SPACE, BOUNDS, seed=seed)
    for i in range(trials):
        vector = (0.8 + 0.4 * i / trials, 1.2 - 0.4 * (i * 7 % trials) / trials)
        made.add(i, vector, value(vector))
    return made


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("trials", [0, 3, 25])
def test_the_same_arguments_give_the_same_vector(sampler: str, trials: int) -> None:
    def proposed(seed: int, slot: int) -> tuple[float, ...]:
        return proposer(sampler, trials, seed=seed).vector(slot)

    assert proposed(0, 5) == proposed(0, 5)
    assert proposed(0, 5) != proposed(0, 6)
    assert proposed(0, 5) != proposed(1, 5)
    assert all(value in BOUNDS for value in proposed(0, 5))


def test_another_process_proposes_the_same() -> None:
    code = "from test_samplers import *; print(proposer('tpe', 25, seed=3).vector(25))"
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        cwd=__file__.rpartition("/")[0],
    ).stdout  # fmt: skip
    assert printed.strip() == str(proposer("tpe", 25, seed=3).vector(25))


@pytest.mark.parametrize("name", ["constant", "ramp", "ramp2", "per-step"])
def test_slot_0_is_the_identity(name: str) -> None:
    space = parametrisation(name, 4)
    vector = Proposer("tpe", space, BOUNDS, seed=9).vector(0)
    assert space.coefficients(vector).is_identity


def test_tpe_learns() -> None:
    """After 40 trials TPE looks nearer to the best than chance does, on average."""
    learnt = [proposer("tpe", 40, seed=seed).vector(40) for seed in range(10)]
    chance = [proposer("random", 40, seed=seed).vector(40) for seed in range(10)]
    assert sum(map(value, learnt)) > 0.7 * sum(map(value, chance))


def test_a_trial_counts_once_and_a_proposal_leaves_nothing_behind() -> None:
    known, again = proposer("tpe", 25), proposer("tpe", 25)
    again.add(3, (0.8, 0.8), 99.0)
    again.add(3, (0.8, 0.8), None)
    again.vector(30)
    assert again.vector(25) == known.vector(25)
    assert known.finished == again.finished == 25


def test_what_others_try_at_the_moment_counts() -> None:
    alone, among = proposer("tpe", 25), proposer("tpe", 25)
    for slot in range(25, 33):
        among.add(slot, alone.vector(40), None)
    assert among.finished == 25
    assert among.vector(40) != alone.vector(40)


def test_a_running_trial_becomes_a_finished_one() -> None:
    known, before = proposer("tpe", 26), proposer("tpe", 25)
    vector = (0.8 + 0.4 * 25 / 26, 1.2 - 0.4 * (25 * 7 % 26) / 26)
    before.add(25, vector, None)
    before.add(25, vector, value(vector))
    assert before.finished == known.finished == 26
