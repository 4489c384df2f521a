"""Trials of a few prompts: dealt evenly, modelled, and completed before one of them is the best."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from qsched.schedule.parametrisations import Bounds, parametrisation
from qsched.search import gauge as gauges
from qsched.search.box import Box
from qsched.search.gauge import Gauge
from qsched.search.plan import Plan
from qsched.search.samplers import Proposer

SPACE = parametrisation("per-step", 2)
BOUNDS = Bounds(0.6, 1.4)
PLAN = Plan(pool=16, per_trial=4)
TRIALS = 44
BEST = np.array([0.9, 1.05, 1.2, 0.85])


def jaq(vector: tuple[float, ...], prompt: int) -> float:
    """A peak, a level for each prompt, and a taste of its own."""
    off = np.array(vector) - BEST
    return float(-8 * off @ off + prompt + 0.4 * np.sin(prompt) * (vector[0] - 1))


def proposer(gauge: Gauge | None = None, seed: int = 0) -> Proposer:
    made = Proposer("prompts", SPACE, BOUNDS, seed=seed, plan=PLAN, gauge=gauge)
    scores = {prompt: jaq(SPACE.identity, prompt) for prompt in range(PLAN.pool)}
    made.add(0, SPACE.identity, float(np.mean(list(scores.values()))), scores=scores)
    return made


def search(made: Proposer, budget: int, workers: int = 1) -> dict[tuple[float, ...], set[int]]:
    """A whole search; {vector: its prompts}."""
    known: dict[tuple[float, ...], set[int]] = {}
    held: dict[int, tuple[tuple[float, ...], list[int]]] = {}
    barriers = PLAN.barriers(budget)
    slot = 1
    while slot < budget or held:
        while slot < budget and len(held) < workers and not (slot in barriers and held):
            proposal = made.propose(slot, budget)
            prompts = range(PLAN.pool) if proposal.prompts is None else proposal.prompts
            assert proposal.vector not in [vector for vector, _ in held.values()]
            done = known.setdefault(proposal.vector, set())
            held[slot] = proposal.vector, [prompt for prompt in prompts if prompt not in done]
            done.update(prompts)
            made.add(slot, proposal.vector, None, prompts=proposal.prompts)
            slot += 1
        ended = min(held)
        vector, new = held.pop(ended)
        scores = {prompt: jaq(vector, prompt) for prompt in new}
        value = made.estimate(ended, vector, scores)
        made.add(ended, vector, value, scores=scores)
    return known


def regret(vector: tuple[float, ...]) -> float:
    pool = range(PLAN.pool)
    best = np.mean([jaq(tuple(BEST), prompt) for prompt in pool])
    return float(best - np.mean([jaq(vector, prompt) for prompt in pool]))


@pytest.mark.parametrize("workers", [1, 8])
def test_the_one_that_has_all_prompts_is_near_the_peak(workers: int) -> None:
    found = search(proposer(), TRIALS, workers)
    whole = [vector for vector, prompts in found.items() if len(prompts) == PLAN.pool]
    assert len(whole) == 1
    assert regret(whole[0]) < 0.1 < 0.5 < regret(SPACE.identity)


def test_prompts_are_dealt_evenly() -> None:
    odd = Proposer("prompts", SPACE, BOUNDS, seed=0, plan=Plan(pool=10, per_trial=4))
    counts: Counter[int] = Counter()
    for slot in range(1, 101):
        prompts = odd.deal(slot)
        assert prompts is not None
        assert len(set(prompts)) == 4
        counts.update(prompts)
        assert max(counts.values()) - min(counts[prompt] for prompt in range(10)) <= 2
    assert set(counts.values()) == {40}


def test_trials_of_the_whole_pool_are_whole() -> None:
    all_ = Proposer("prompts", SPACE, BOUNDS, seed=0, plan=Plan(pool=4, per_trial=4))
    assert all_.deal(1) is None
    assert Plan(pool=4, per_trial=4).last(50) == ()


@pytest.mark.parametrize(
    ("pool", "per_trial", "budget", "images"),
    [
        (64, 4, 148, 64 + 144 * 4 + 2 * 28 + 32),
        (64, 4, 1, 64),
        (16, 4, 5, 16 + 3 * 4 + 12),
        (4, 4, 10, 40),
    ],
)
def test_a_budget_of_images(pool: int, per_trial: int, budget: int, images: int) -> None:
    plan = Plan(pool, per_trial)
    assert plan.images(budget) == images
    assert plan.trials(images) == budget
    assert plan.trials(images - 1) < budget


def test_the_last_trials_go_on_with_the_survivors_of_the_round_before() -> None:
    made, budget = proposer(), TRIALS
    found = search(made, budget)
    sizes = Counter(len(prompts) for prompts in found.values())
    assert PLAN.last(budget) == (8, 8, 16)
    assert sizes == {4: budget - 1 - 3 - 2, 8: 1, 16: 1}


PROGRAM = """
import json, sys
from tests.search.test_prompt_sampler import proposer, search
made = proposer()
search(made, 20)
print(json.dumps([made.propose(slot, 44).vector for slot in (20, 21)]))
"""


def test_a_proposal_repeats_to_the_bit_in_a_fresh_process() -> None:
    made = proposer()
    search(made, 20)
    here = [list(made.propose(slot, TRIALS).vector) for slot in (20, 21)]
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert json.loads(ran.stdout) == here, ran.stderr


def test_a_proposal_is_a_function_of_the_stored_history_alone() -> None:
    """One that has looked on from the beginning, and one that learns it now."""
    lasting, budget = proposer(), 60
    search(lasting, 30)
    late = proposer()
    for slot, vector, value in lasting._history.finished[1:]:
        late.add(slot, vector, value, scores=lasting._history.scores[slot])
    assert late.propose(30, budget) == lasting.propose(30, budget)


def test_the_gauge_is_the_direction_of_the_amplitude() -> None:
    box = Box(SPACE, BOUNDS, 0)
    slopes = np.array([0.3, -0.1, 0.5, 0.8])

    def amplitudes(noise: float) -> np.ndarray:
        random = np.random.default_rng(0)
        return np.array(
            [
                [slopes @ box.searched(probe) + noise * random.normal() for _ in range(4)]
                for probe in gauges.probes(box)
            ]
        )

    found = gauges.measured(box, amplitudes(0.0))
    np.testing.assert_allclose(found.direction, slopes / np.linalg.norm(slopes))
    assert found.slope == pytest.approx(np.linalg.norm(slopes))
    assert found.agreement == pytest.approx(1.0)
    assert gauges.measured(box, amplitudes(1.0)).direction == ()  # prompts don't agree
    assert gauges.measured(box, 0.01 * amplitudes(0.0)).direction == ()  # too weak
    assert gauges.measured(box, np.full((8, 4), np.nan)).direction == ()
    assert Gauge.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("name", ["constant", "ramp", "ramp2", "x0-average", "ramp+x0-fade"])
def test_the_gauge_is_measured_in_every_space(name: str) -> None:
    """At the side of an interval to one side; what is pinned is no axis."""
    space = parametrisation(name, 4)
    box = Box(space, BOUNDS, 0)
    probes = gauges.probes(box)
    assert len(probes) == 2 * (space.dimension - len(space.pinned))
    slopes = np.arange(1.0, len(box.origin) + 1)
    found = gauges.measured(box, np.array([[slopes @ box.searched(p)] * 4 for p in probes]))
    np.testing.assert_allclose(found.direction, slopes / np.linalg.norm(slopes))
    made = Proposer("prompts", space, BOUNDS, seed=0, plan=PLAN, gauge=found)
    scores = dict.fromkeys(range(16), 0.0)
    made.add(0, space.identity, 0.0, scores=scores)
    for slot in range(1, 12):
        proposal = made.propose(slot, 100)
        space.coefficients(proposal.vector)
        made.add(slot, proposal.vector, 0.0, scores=dict.fromkeys(proposal.prompts or (), 0.0))


def test_first_points_keep_close_to_the_identity_along_the_gauge() -> None:
    direction = np.array([0.5, -0.5, 0.5, 0.5])
    gauge = Gauge(tuple(direction), 1.0, 1.0)
    box = Box(SPACE, BOUNDS, 0)

    def along(made: Proposer) -> list[float]:
        points = [box.searched(made.vector(slot)) - box.origin for slot in range(1, 8)]
        return [abs(float(point @ direction)) for point in points]

    with_it, without = along(proposer(gauge)), along(proposer())
    np.testing.assert_allclose(with_it, 0.25 * np.array(without), atol=1e-9)


@pytest.mark.parametrize(
    "stored", [{}, {"direction": [1, 1], "slope": 1, "agreement": 1}, {"direction": "no"}]
)
def test_what_is_no_gauge_is_refused(stored: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="gauge"):
        Gauge.from_dict({"images": 1, "network_calls": 1, **stored})
