"""A proposal is a pure function of the finished trials, the seed and the slot."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from qsched.errors import ConfigError, QschedError
from qsched.schedule.parametrisations import DECAY, Bounds, Parametrisation, parametrisation
from qsched.search.catalog import AUTO, NEVERGRAD, PROMPTS, SAMPLERS, check_sampler, resolved
from qsched.search.plan import Plan
from qsched.search.samplers import Proposer
from qsched.seeds import stable_seed

SPACE = parametrisation("ramp", 4)
WIDE = parametrisation("per-step", 4)
BOUNDS = Bounds(0.8, 1.2)
BUDGET = 101
PLAN = Plan(pool=8, per_trial=2)
LEARNERS = ("gp", "tpe", "cmaes", "nevergrad:CMA", "nevergrad:OnePlusOne")
KINDS = ("random", "qmc", "grid", *LEARNERS, "nevergrad:DE", "nevergrad:PSO")

Trial = tuple[int, tuple[float, ...], float | None]


def value(vector: tuple[float, ...]) -> float:
    return -((vector[0] - 1.1) ** 2) - (vector[1] - 0.9) ** 2


def trials(count: int) -> list[Trial]:
    vectors = ((0.8 + 0.4 * i / count, 1.2 - 0.4 * (i * 7 % count) / count) for i in range(count))
    return [(i, vector, value(vector)) for i, vector in enumerate(vectors)]


def proposer(sampler: str, known: int | list[Trial], *, seed: int = 0) -> Proposer:
    """One that knows some trials."""
    plan = PLAN if resolved(sampler, SPACE.dimension) == PROMPTS else None
    made = Proposer(sampler, SPACE, BOUNDS, seed=seed, budget=BUDGET, plan=plan)
    for slot, vector, result in trials(known) if isinstance(known, int) else known:
        prompts = (made.deal(slot) if slot else None) or range(PLAN.pool)
        scores = None if result is None else {prompt: result + prompt for prompt in prompts}
        made.add(slot, vector, result, scores=scores)
    return made


def search(
    sampler: str,
    space: Parametrisation,
    goal: float,
    *,
    seed: int,
    count: int = 40,
    workers: int = 1,
) -> list[tuple[float, ...]]:
    """What is tried, by slot, while `workers` look for `goal` and end out of turn."""
    made = Proposer(sampler, space, BOUNDS, seed=seed, budget=count)
    tried: list[tuple[float, ...]] = []
    held: list[int] = []
    for slot in range(count):
        tried.append(made.vector(slot))
        made.add(slot, tried[slot], None)
        held.append(slot)
        if len(held) == workers:
            done = held.pop(slot * 2 % workers)
            made.add(done, tried[done], -sum((x - goal) ** 2 for x in tried[done]))
    return tried


@pytest.mark.parametrize("sampler", [name for name in KINDS if name != "grid"])
def test_what_a_space_pins_is_in_every_trial_but_the_identity(sampler: str) -> None:
    space = parametrisation("constant+x0-fade", 4)
    tried = search(sampler, space, 0.95, seed=0, count=16, workers=2)
    assert tried[:2] == [(1.0, 1.0, 0.0), (1.0, 1.0, DECAY)]
    assert {vector[2] for vector in tried[1:]} == {DECAY}
    assert len(set(tried)) == 16


def test_the_identity_does_not_mislead_a_model_about_a_pinned_space() -> None:
    tried = {}
    for value in (-1e6, 1e6):
        made = Proposer("gp", parametrisation("constant+x0-fade", 4), BOUNDS, seed=0)
        for slot in range(12):
            vector = made.vector(slot)
            made.add(slot, vector, -((vector[0] - 0.9) ** 2) if slot else value)
        tried[value] = made.vector(12)
    assert len(set(tried.values())) == 1


@pytest.mark.parametrize("sampler", [name for name in KINDS if name != "grid"])
@pytest.mark.parametrize("known", [0, 3, 25])
def test_the_same_arguments_give_the_same_vector(sampler: str, known: int) -> None:
    def proposed(seed: int, slot: int) -> tuple[float, ...]:
        return proposer(sampler, known, seed=seed).vector(slot)

    assert proposed(0, 35) == proposed(0, 35)
    assert proposed(0, 35) != proposed(0, 36)
    if not (sampler == "nevergrad:OnePlusOne" and known == 0):  # it begins at the identity
        assert proposed(0, 35) != proposed(1, 35)
    assert all(number in BOUNDS for number in proposed(0, 35))


def proposals() -> dict[str, list[float]]:
    """Of every sampler, for histories that ended out of turn while others run."""
    shuffled: list[Trial] = trials(25)
    shuffled = shuffled[:5] + shuffled[8:5:-1] + shuffled[9:]
    running: list[Trial] = [(25, (0.9, 1.15), None), (26, (1.15, 0.85), None)]
    return {
        sampler: list(proposer(sampler, shuffled + running, seed=3).vector(27))
        for sampler in SAMPLERS
    }


def test_another_process_proposes_the_same() -> None:
    code = "from tests.search.test_samplers import *; print(json.dumps(proposals()))"
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        cwd=Path(__file__).parents[2],
    ).stdout  # fmt: skip
    assert json.loads(printed.splitlines()[-1]) == proposals()


@pytest.mark.parametrize("sampler", KINDS)
def test_what_was_asked_before_does_not_matter(sampler: str) -> None:
    """One that has proposed after every trial agrees with one that learns of all at once."""
    lasting = proposer(sampler, 0)
    for slot, vector, result in trials(30):
        if slot % 4 == 3:
            lasting.vector(slot + 9)
        lasting.add(slot, vector, None)
        if slot % 5 < 2:
            lasting.vector(slot + 1)
        lasting.add(slot, vector, result)
    assert lasting.vector(30) == proposer(sampler, 30).vector(30)
    assert lasting.vector(33) == proposer(sampler, 30).vector(33)


@pytest.mark.parametrize("name", ["constant", "ramp", "ramp2", "per-step"])
def test_slot_0_is_the_identity(name: str) -> None:
    space = parametrisation(name, 4)
    vector = Proposer("tpe", space, BOUNDS, seed=9).vector(0)
    assert space.coefficients(vector).is_identity


@pytest.mark.parametrize(("space", "goal"), [(SPACE, 1.1), (WIDE, 1.05)])
@pytest.mark.parametrize("sampler", LEARNERS)
def test_it_learns(sampler: str, space: Parametrisation, goal: float) -> None:
    """It comes nearer to the best than as much chance does, on average over seeds."""
    count, seeds = (20, range(2)) if sampler == "gp" else (40, range(10))  # which takes long

    def loss(name: str, seed: int) -> float:
        tried = search(name, space, goal, seed=seed, count=count)
        return min(sum((x - goal) ** 2 for x in vector) for vector in tried[1:])

    learnt = np.mean([loss(sampler, seed) for seed in seeds])
    assert learnt < 0.5 * np.mean([loss("random", seed) for seed in range(10)])


@pytest.mark.parametrize("sampler", KINDS)
def test_four_workers_never_try_the_same(sampler: str) -> None:
    tried = search(sampler, SPACE, 1.2, seed=0, count=24, workers=4)  # the goal is a corner
    assert len(set(tried)) == 24
    assert all(number in BOUNDS for vector in tried for number in vector)


@pytest.mark.parametrize("sampler", KINDS)
def test_slots_that_begin_at_once_try_different_vectors(sampler: str) -> None:
    """None of them is known to the others, because none is recorded yet."""
    vectors = {proposer(sampler, 20).vector(slot) for slot in range(20, 28)}
    assert len(vectors) == 8


@pytest.mark.parametrize("sampler", ["gp", "cmaes", "nevergrad:CMA"])
def test_it_begins_around_the_identity(sampler: str) -> None:
    tried = np.array(search(sampler, WIDE, 1.0, seed=0, count=9))
    chance = np.array(search("random", WIDE, 1.0, seed=0, count=9))
    assert np.abs(tried[1:] - 1).mean() < 0.8 * np.abs(chance[1:] - 1).mean()


@pytest.mark.parametrize("bounds", [Bounds(1.0, 1.3), Bounds(0.4, 1.0), Bounds(0.9, 1.9)])
@pytest.mark.parametrize("sampler", KINDS)
def test_the_identity_may_lie_at_a_bound(sampler: str, bounds: Bounds) -> None:
    made = Proposer(sampler, SPACE, bounds, seed=0, budget=30)
    for slot in range(16):
        vector = made.vector(slot)
        assert all(number in bounds for number in vector)
        made.add(slot, vector, value(vector))


def test_a_trial_counts_once_and_a_proposal_leaves_nothing_behind() -> None:
    known, again = proposer("tpe", 25), proposer("tpe", 25)
    again.add(3, (0.8, 0.8), 99.0)
    again.add(3, (0.8, 0.8), None)
    again.vector(30)
    assert again.vector(25) == known.vector(25)
    assert known.finished == again.finished == 25


@pytest.mark.parametrize("sampler", KINDS)
def test_a_slot_that_begins_again_gets_the_same(sampler: str) -> None:
    made = proposer(sampler, 25)
    vector = made.vector(25)
    made.add(25, vector, None)
    assert made.vector(25) == vector


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("sampler", ["random", "qmc", "grid", "cmaes", "nevergrad:DE"])
def test_what_another_slot_has_is_passed_over(sampler: str, finished: bool) -> None:
    made = proposer(sampler, 25)
    vector = made.vector(25)
    made.add(60, vector, 0.0 if finished else None)
    assert made.vector(25) != vector
    assert all(number in BOUNDS for number in made.vector(25))


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_what_others_try_at_the_moment_counts(sampler: str) -> None:
    alone, among = proposer(sampler, 25).vector(40), proposer(sampler, 25)
    for slot in range(25, 33):
        among.add(slot, alone, None)
    assert among.finished == 25
    assert among.vector(40) != alone


@pytest.mark.parametrize("sampler", KINDS)
def test_a_running_trial_becomes_a_finished_one(sampler: str) -> None:
    known, before = proposer(sampler, 26), proposer(sampler, 25)
    _, vector, result = trials(26)[25]
    before = proposer(sampler, trials(26)[:25])
    before.add(25, vector, None)
    before.add(25, vector, result)
    assert before.finished == known.finished == 26
    assert before.vector(26) == known.vector(26)


def test_a_flat_objective_is_no_error() -> None:
    for sampler in KINDS:
        flat: list[Trial] = [(slot, vector, 1.0) for slot, vector, _ in trials(30)]
        assert all(number in BOUNDS for number in proposer(sampler, flat).vector(30))


def test_the_grid_is_the_official_one() -> None:
    """10 x 10 points, the bounds included; the identity isn't among them."""
    made = proposer("grid", 0)
    axis = np.linspace(0.8, 1.2, 10)
    wanted = [tuple(map(float, point)) for point in product(axis, repeat=2)]
    assert [made.vector(slot) for slot in range(1, 101)] == wanted
    assert made.vector(101) not in wanted, "a study that is extended goes on elsewhere"
    odd = Proposer("grid", SPACE, BOUNDS, seed=0, budget=26)
    assert SPACE.identity not in [odd.vector(slot) for slot in range(1, 26)]


def test_the_grid_is_for_two_numbers_and_a_budget() -> None:
    with pytest.raises(ConfigError, match="sampler 'grid' in 8 dimensions; expected 2; set"):
        Proposer("grid", WIDE, BOUNDS, seed=0, budget=101)
    with pytest.raises(QschedError, match="'grid' without a budget"):
        Proposer("grid", SPACE, BOUNDS, seed=0)


def test_qmc_fills_the_box_more_evenly_than_chance() -> None:
    from scipy.stats.qmc import discrepancy, scale

    def uneven(sampler: str, seed: int) -> float:
        made = Proposer(sampler, SPACE, BOUNDS, seed=seed)
        points = np.array([made.vector(slot) for slot in range(1, 33)])
        return float(discrepancy(scale(points, 0.8, 1.2, reverse=True)))

    seeds = range(10)
    assert sum(uneven("qmc", seed) for seed in seeds) < 0.5 * sum(
        uneven("random", seed) for seed in seeds
    )


def test_cmaes_is_the_library_told_a_population_at_a_time() -> None:
    from cmaes import CMA

    by_hand = CMA(np.array([0.5, 0.5]), 0.25, bounds=np.array([[0.0, 1.0]] * 2), seed=0)
    known = trials(2 * by_hand.population_size + 3)
    for begin in (0, by_hand.population_size):
        generation = known[begin : begin + by_hand.population_size]
        by_hand.tell([((np.array(v) - 0.8) / 0.4, -value(v)) for _, v, _ in generation])
    by_hand.reseed_rng(stable_seed("sampler", 0, len(known)) % 2**32)
    expected = tuple(0.8 + 0.4 * by_hand.ask())
    assert proposer("cmaes", known).vector(len(known)) == pytest.approx(expected)


def test_cmaes_begins_again_when_it_has_converged() -> None:
    made = Proposer("cmaes", SPACE, BOUNDS, seed=0)
    away = []
    for slot in range(900):
        vector = made.vector(slot)
        made.add(slot, vector, value(vector))
        away.append(abs(vector[0] - 1.1))
    converged = next(slot for slot in range(900) if away[slot] < 1e-6)
    assert max(away[converged:]) > 0.05


def test_auto_is_one_of_the_others_for_every_dimension() -> None:
    for dimension in (2, 4, 8, 16, 128):
        assert resolved("auto", dimension) in SAMPLERS
    assert resolved("auto", 2) == AUTO[0][1]
    assert proposer("auto", 25).vector(25) == proposer(resolved("auto", 2), 25).vector(25)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("TPE", "'TPE' is no sampler; expected auto, .*grid or nevergrad:<optimizer>; .*'tpe'?"),
        ("bo", "'bo' is no sampler; .*; leave it out for 'auto'"),
        ("nevergrad:NGOpt", "'NGOpt' fails with numpy 2; expected one of CMA, .*; use "),
        ("nevergrad:MetaModel", "'MetaModel' fails with numpy 2; expected one of CMA, .*; use "),
        ("nevergrad:NgIohTuned", "'NgIohTuned' fails with numpy 2; expected one of CMA, .*; use "),
        ("nevergrad:Cobyla", "'Cobyla' can't propose to several workers at once; expected one of"),
        ("nevergrad:cma", "'cma' isn't known to be rebuilt exactly .*; expected one of"),
        ("nevergrad:", "'' isn't known to be rebuilt exactly .*; expected one of"),
    ],
)
def test_what_is_no_sampler_is_refused_in_words(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        check_sampler(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        Proposer(name, SPACE, BOUNDS, seed=0)


def test_names_are_checked_without_anything_heavy() -> None:
    code = (
        "import sys; from qsched.search.catalog import check_sampler\n"
        f"for name in {list(SAMPLERS)!r}: check_sampler(name)\n"
        "heavy = {'optuna', 'torch', 'numpy', 'nevergrad', 'cmaes', 'scipy'} & sys.modules.keys()\n"
        "import qsched.search.samplers\n"
        "print(sorted(heavy), sorted({'torch', 'nevergrad'} & sys.modules.keys()))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert printed.strip() == "[] []"
    assert {f"nevergrad:{name}" for name in NEVERGRAD} < SAMPLERS.keys()
