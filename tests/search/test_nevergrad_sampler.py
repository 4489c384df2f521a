"""NevergradSampler: Optuna's contract, and no state beside the stored trials."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.testing import pytest_samplers as contract

pytest.importorskip("nevergrad")

from qsched.errors import ConfigError
from qsched.search.catalog import NEVERGRAD
from qsched.search.nevergrad_sampler import Machine
from qsched.search.samplers import NevergradSampler
from qsched.seeds import stable_seed

OPTIMIZERS = ("CMA", "DE", "PSO", "OnePlusOne")
SPACE: dict[str, BaseDistribution] = {name: FloatDistribution(0.6, 1.4) for name in "abc"}


class TestContract(
    contract.BasicSamplerTestCase,
    contract.RelativeSamplerTestCase,
    contract.SingleOnlySamplerTestCase,
):
    """Optuna's own suite. It is for one objective, so its multi-objective class doesn't apply."""

    @pytest.fixture(params=OPTIMIZERS)
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        return lambda: NevergradSampler(request.param, seed=0)


def loss(params: dict[str, float]) -> float:
    return sum(
        (params[name] - goal) ** 2 for name, goal in zip("abc", (0.9, 1.1, 1.2), strict=True)
    )


def turns(study: optuna.Study, *, workers: int, trials: int) -> list[tuple[float, ...]]:
    """`workers` hold a trial each; the results come in the order 3rd, 1st, 2nd ... held trial."""
    proposed: list[tuple[float, ...]] = []
    held: list[optuna.trial.Trial] = []
    for number in range(trials):
        trial = study.ask(SPACE)
        proposed.append(tuple(trial.params.values()))
        held.append(trial)
        if len(held) == workers:
            done = held.pop(number * 2 % workers)
            if number % 11 == 7:
                study.tell(done, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(done, loss(done.params))
    return proposed


def next_proposal(url: str, optimizer: str, seed: int | None) -> list[float]:
    sampler = NevergradSampler(optimizer, seed=seed)
    study = optuna.load_study(study_name="copy", storage=url, sampler=sampler)
    return list(study.ask(SPACE).params.values())


def begun(optimizer: str, seed: int | None, *, workers: int, trials: int = 26) -> optuna.Study:
    study = optuna.create_study(sampler=NevergradSampler(optimizer, seed=seed))
    turns(study, workers=workers, trials=trials)
    return study


def stored(study: optuna.Study, folder: Path) -> str:
    """The trials of a study, in a database of their own."""
    url = f"sqlite:///{folder}/copy.db"
    optuna.create_study(study_name="copy", storage=url).add_trials(study.get_trials())
    return url


@pytest.mark.parametrize("workers", [1, 4])
def test_a_fresh_process_makes_the_same_next_proposals(workers: int, tmp_path: Path) -> None:
    """To the bit, for every optimizer; with results out of order, and trials that failed."""
    cases = []
    for index, optimizer in enumerate(NEVERGRAD):
        (folder := tmp_path / optimizer).mkdir()
        study = begun(optimizer, 5, workers=workers)
        url = stored(study, folder)
        wanted = list(study.ask(SPACE).params.values())
        cases.append((url, optimizer, 5 if index % 2 else None, wanted))
    code = (
        "from tests.search.test_nevergrad_sampler import next_proposal\n"
        f"for url, optimizer, seed, _ in {cases!r}: print(next_proposal(url, optimizer, seed))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        cwd=Path(__file__).parents[2],
    ).stdout  # fmt: skip
    assert printed.splitlines() == [str(wanted) for *_, wanted in cases]


@pytest.mark.parametrize("optimizer", NEVERGRAD)
def test_a_sampler_for_each_ask_proposes_what_a_lasting_one_does(optimizer: str) -> None:
    """Nothing is kept in the process, and a worker's own seed doesn't matter once begun."""
    lasting = optuna.create_study(sampler=NevergradSampler(optimizer, seed=3))
    fresh = optuna.create_study(sampler=NevergradSampler(optimizer, seed=3))
    for study in (lasting, fresh):
        for number in range(14):
            if study is fresh:
                study.sampler = NevergradSampler(optimizer, seed=3 if number < 4 else number)
            trial = study.ask(SPACE)
            study.tell(trial, loss(trial.params))
    assert [trial.params for trial in fresh.trials] == [trial.params for trial in lasting.trials]


@pytest.mark.parametrize("optimizer", NEVERGRAD)
def test_four_workers_never_get_the_same_proposal(optimizer: str) -> None:
    study = optuna.create_study(sampler=NevergradSampler(optimizer, seed=1))
    proposed = turns(study, workers=4, trials=60)
    assert len(set(proposed)) == 60


def work(url: str, optimizer: str, trials: int) -> None:
    sampler = NevergradSampler(optimizer)  # each worker with a seed of its own
    study = optuna.load_study(study_name="copy", storage=url, sampler=sampler)
    for _ in range(trials):
        trial = study.ask(SPACE)
        study.tell(trial, loss(trial.params))


def test_four_processes_at_once(tmp_path: Path) -> None:
    """No two equal proposals; afterwards two fresh processes agree on the next one."""
    url = stored(begun("DE", 1, workers=1, trials=2), tmp_path)
    code = f"from tests.search.test_nevergrad_sampler import work; work({url!r}, 'DE', 8)"
    here = Path(__file__).parents[2]
    workers = [subprocess.Popen([sys.executable, "-c", code], cwd=here) for _ in range(4)]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * 4
    study = optuna.load_study(study_name="copy", storage=url)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 34
    (tmp_path / "again").mkdir()
    again = stored(study, tmp_path / "again")
    assert next_proposal(url, "DE", 8) == next_proposal(again, "DE", 9)


def test_workers_that_ask_at_once_get_different_proposals() -> None:
    """Neither has recorded its ask when the other one replays: what a race looks like."""
    study = begun("DE", 1, workers=4, trials=12)
    one, other = (study._storage.create_new_trial(study._study_id) for _ in range(2))
    sampler = study.sampler
    late = sampler.sample_relative(study, study._storage.get_trial(other), dict(SPACE))
    early = sampler.sample_relative(study, study._storage.get_trial(one), dict(SPACE))
    assert early != late


@pytest.mark.parametrize("optimizer", NEVERGRAD)
def test_a_slow_worker_does_not_repeat_those_that_overtook_it(optimizer: str) -> None:
    """Its trial is older than one that has its result already, and than one that runs."""
    study = begun(optimizer, 1, workers=4, trials=12)
    slow = study._storage.create_new_trial(study._study_id)
    done, running = study.ask(SPACE), study.ask(SPACE)
    study.tell(done, loss(done.params))
    late = study.sampler.sample_relative(study, study._storage.get_trial(slow), dict(SPACE))
    assert late not in (done.params, running.params)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_is_the_optimizer_of_nevergrad(optimizer: str) -> None:
    """Asked and told in turns, the vectors are those of the library, used by hand."""
    import nevergrad

    machine = Machine(optimizer, [0.5, 0.5], seed=7)
    space = nevergrad.p.Array(init=[0.5, 0.5], lower=0.0, upper=1.0).set_mutation(sigma=0.25)
    space.random_state.seed(7)
    by_hand = nevergrad.optimizers.registry[optimizer](space, num_workers=1)
    for number in range(50):
        vector, candidate = machine.ask(number), by_hand.ask()
        while optimizer == "OnePlusOne" and (candidate.value != vector).any():
            candidate = by_hand.ask()  # a repetition, which a machine passes over
        assert vector.tolist() == candidate.value.tolist()
        value = float(((vector - 0.3) ** 2).sum())
        machine.tell(number, vector, value)
        by_hand.tell(candidate, value)


@pytest.mark.parametrize("optimizer", NEVERGRAD)
def test_a_study_is_one_long_run_of_the_optimizer(optimizer: str) -> None:
    """Every proposal is what a lasting optimizer makes that is told each result in its turn."""
    study = begun(optimizer, 4, workers=1, trials=40)
    machine = Machine(optimizer, [0.5] * 3, seed=stable_seed("nevergrad", 4, optimizer))
    for trial in study.trials:
        vector = (np.array(list(trial.params.values())) - 0.6) / 0.8
        if trial.number:  # the first one is drawn before the space is known
            assert machine.ask(trial.number) == pytest.approx(vector, abs=1e-12)
        if trial.value is not None:
            machine.tell(trial.number, vector, trial.value)


def test_a_vector_that_others_tried_is_not_asked() -> None:
    """DE's first vectors don't depend on results, so the next one is known beforehand."""
    foreseen, machine = (Machine("DE", [0.5, 0.5], seed=1) for _ in range(2))
    foreseen.tell(0, [0.1, 0.1], 1.0)
    vector = foreseen.ask(1)
    machine.tell(0, vector, 1.0)
    assert machine.ask(1).tolist() != vector.tolist()


@pytest.mark.parametrize("optimizer", sorted(set(NEVERGRAD) - {"PSO"}))
def test_it_learns_from_what_others_proposed(optimizer: str) -> None:
    """Forty trials of others near the optimum draw it there. Told alone, they leave CMA cold."""

    def distance(machine: Machine) -> float:
        return float(np.mean([np.abs(machine.ask(100 + number) - 0.8) for number in range(10)]))

    rng = np.random.default_rng(0)
    ignorant = Machine(optimizer, [0.5, 0.5], seed=1)
    informed = Machine(optimizer, [0.5, 0.5], seed=1)
    for number in range(40):
        vector = rng.normal(0.8, 0.05, 2)
        informed.tell(number, vector, float(((vector - 0.8) ** 2).sum()))
    assert distance(informed) < 0.6 * distance(ignorant)


@pytest.mark.parametrize("name", ["NGOpt", "MetaModel", "NgIohTuned", "Cobyla", "De"])
def test_others_are_refused_in_words(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"Nevergrad's '{name}' .*; expected one of CMA, .*; use "
    ):
        NevergradSampler(name)
