"""What must hold of a study, whatever happened: from SQL, and from what workers wrote down."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qsched.service.schema import Slot
from qsched.service.stored_study import StoredStudy
from tests.support.faults.workers import number_of, value_of


def examine(study: StoredStudy, budget: int | None, folder: Path) -> dict[str, Any]:
    """What must hold, as a list of what doesn't; and how often a batch was made again.

    `budget`: the trials of a study that is complete; None for one that rests on its way.
    """
    wrong: list[str] = []

    def hold(condition: bool, words: str) -> None:
        if not condition:
            wrong.append(words)

    definition, number = study.definition, number_of(study)
    complete = budget is not None
    slots = study.slots()
    states = Counter(slot.state for slot in slots)
    kinds_of_end = {"finished", "stopped"} if definition.tables.search.stop_below else {"finished"}
    if complete:
        hold(
            [slot.number for slot in slots] == list(range(budget or 0)), "slots are not 0 to N - 1"
        )
        hold(set(states) <= kinds_of_end, f"slots are {dict(states)}: {study.queue.reasons()}")
    prompts, scorers = len(definition.calibration), definition.scorers
    present = {
        (slot.number, score.prompt, score.metric): score.value
        for slot in slots
        for score in study.queue.scores(slot.number)
    }
    hold(len(present) % (definition.tables.execution.batch_size * len(scorers)) == 0, "part batch")
    for slot in slots:
        coefficients = study.coefficients(slot.vector) if slot.vector else None
        values = {metric: [] for metric in scorers}  # type: dict[str, list[float]]
        scored = {prompt for which, prompt, _ in present if which == slot.number}
        hold(coefficients is not None or not scored, f"slot {slot.number} has scores of no vector")
        for prompt in sorted(scored):
            for metric in scorers:
                value = value_of(number, coefficients, prompt, metric)
                hold(present.get((slot.number, prompt, metric)) == value, f"score of {slot.number}")
                values[metric].append(value)
        if slot.state == "finished":
            hold(len(scored) == prompts, f"slot {slot.number} has {len(scored)} prompts")
            expected = definition.objective.value(values)
            hold(slot.value == expected, f"slot {slot.number}: {slot.value}, expected {expected}")
        elif complete or slot.state == "stopped":
            hold(0 < len(scored) < prompts, f"{slot.number} stopped at {len(scored)} prompts")
    best = study.best()
    finished = [slot.value or 0.0 for slot in slots if slot.state == "finished"]
    hold((best.value if best else None) == max(finished, default=None), "the best is no maximum")
    kinds = _compare(study.trials.all(), slots, complete, hold)

    made, committed, gone = _history(folder, number)
    missing = [key for key in committed if not all((*key, metric) in present for metric in scorers)]
    hold(not missing, f"study {number}: {len(missing)} committed images are not there")
    twice = [key for key, count in committed.items() if count > 1]
    hold(not twice, f"study {number}: {len(twice)} images were committed twice")
    return {
        "stopped": states["stopped"],
        "images": len(made),
        "made again": sum(made.values()) - len(made),
        "found their study gone": gone,
        "failed trials in Optuna": kinds["FAIL"],
        "wrong": wrong,
    }


def _compare(
    trials: Sequence[Any], slots: Sequence[Slot], complete: bool, hold: Callable[[bool, str], None]
) -> Counter[str]:
    """Optuna's trials against the slots; how many there are of each state. A study on its way may
    have a trial whose slot was not told yet."""
    kinds = Counter(trial.state.name for trial in trials)
    if complete:
        hold(set(kinds) <= {"COMPLETE", "PRUNED", "FAIL"}, f"Optuna's trials are {dict(kinds)}")
    ended = {slot.number for slot in slots if slot.state in ("finished", "stopped")}
    for kind, state in (("COMPLETE", "finished"), ("PRUNED", "stopped")):
        here = [trial for trial in trials if trial.state.name == kind]
        told = {trial.user_attrs["slot"]: _value(trial) for trial in here}
        hold(len(here) == len(told), f"a slot has two {kind} trials")
        wanted = {slot.number: slot.value for slot in slots if slot.state == state}
        known = told if complete else {slot: v for slot, v in told.items() if slot in ended}
        differing = sorted(
            slot for slot in known.keys() | wanted.keys() if known.get(slot) != wanted.get(slot)
        )
        states = {trial.user_attrs.get("slot"): trial.state.name for trial in trials}
        hold(
            known == wanted,
            f"Optuna's {kind} trials are not the {state} slots: "
            + ", ".join(
                f"slot {slot}: {states.get(slot)} {known.get(slot)}, slot's {wanted.get(slot)}"
                for slot in differing
            ),
        )
    return kinds


def _history(folder: Path, study: int) -> tuple[Counter[Any], Counter[Any], int]:
    """What workers wrote down: how often each (slot, prompt) of a study was made, and committed,
    and how many workers, of any study, found theirs gone."""
    counts: dict[str, Counter[Any]] = {"made": Counter(), "committed": Counter()}
    gone = 0
    for log in folder.glob("worker-*.jsonl"):
        for line in log.read_text().splitlines():
            kind, number, slot, *prompts = json.loads(line)
            gone += kind == "gone"
            if number == study and kind in counts:
                counts[kind].update((slot, prompt) for prompt in prompts)
    return counts["made"], counts["committed"], gone


def _value(trial: Any) -> float:
    return float(trial.user_attrs["estimate"] if trial.value is None else trial.value)
