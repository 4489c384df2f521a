"""Whether a scheduler takes what a study declares of it, and what its pipeline gives it."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qsched.errors import DocumentError
from qsched.files.documents import json_object
from qsched.pipelines import catalog
from qsched.pipelines.table import Model, layout_of
from qsched.schedule.schedulers import WORKING, refusal
from qsched.signatures import ClassSource, Parameter, did_you_mean, evaluated, of_diffusers

LEAVE_OUT = "; leave it out"
"""What to do with a key that a class doesn't have, where none is near."""


def scheduler_of(model: Model) -> tuple[ClassSource, str] | None:
    """The class of the scheduler that the model will have, and who says so; None if unknown."""
    declared = model.scheduler or catalog.model_entry(model.name).scheduler
    name = declared["class"] if declared else scheduler_in(layout_of(model)).get("_class_name")
    kind = of_diffusers(str(name))
    says = f"model.scheduler.class = {name!r}" if declared else f"the folder's {name}"
    return (kind, says) if kind is not None else None


def scheduler_in(source: str) -> Mapping[str, Any]:
    """The scheduler's config in a folder; empty where there is none."""
    return read(Path(source) / "scheduler" / "scheduler_config.json")


def read(path: Path) -> Mapping[str, Any]:
    """A JSON file of a folder; empty where it isn't, or can't be read."""
    try:
        return json_object(path)
    except DocumentError:
        return {}


def config_of(kind: ClassSource, model: Model) -> Mapping[str, Any]:
    """The whole config: the class's defaults, the folder's, what is declared."""
    defaults = {name: each.default for name, each in kind.parameters("__init__").items()}
    declared = model.scheduler or catalog.model_entry(model.name).scheduler or {}
    return defaults | dict(scheduler_in(layout_of(model))) | dict(declared)


def problems_of_scheduler(kind: ClassSource, says: str, model: Model) -> Iterator[str]:
    """A scheduler that can't be preconditioned, and what is declared of it and doesn't exist.

    `says`: who names this class.
    """
    reason = refusal(kind.names, list(kind.parameters("step")), kind.constant("order") or 1)
    if reason:
        yield f"{says}: {reason}; set model.scheduler to one of {WORKING}"
    yield from problems_of_declared(kind, model.scheduler or {})


def problems_of_pair(
    kind: ClassSource, scheduler: ClassSource, says: str, config: Mapping[str, Any]
) -> Iterator[str]:
    """What the pipeline gives the scheduler at every call, which that one has to take."""
    taken = scheduler.parameters("set_timesteps")
    given = _given(kind, config)
    missing = [name for name in given if taken and name not in taken]
    if missing:
        yield (
            f"{says}: {kind.name} gives it {' and '.join(missing)}, which it doesn't take; leave "
            "model.scheduler out, or set it to one that does"
        )
    this = SimpleNamespace(config=SimpleNamespace(**config))
    for name, test in _demands(scheduler):
        if name in given and evaluated(test, this) is False:
            yield (
                f"{says}: {kind.name} gives it {name}, for which it expects "
                f"{ast.unparse(test).replace('self.config.', '')}; set that in model.scheduler"
            )


def _given(kind: ClassSource, config: Mapping[str, Any]) -> list[str]:
    """The arguments beside the number of steps that `__call__` always passes to set_timesteps."""
    function = next(kind.methods("__call__"), None)
    nodes = list(ast.walk(function)) if function else []
    assigned = [
        (ast.unparse(target), node.value)
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
    ]
    flow = {
        ast.unparse(target)
        for node in nodes
        if isinstance(node, ast.If) and "use_flow_sigmas" in ast.unparse(node.test)
        for line in node.body
        if isinstance(line, ast.Assign)
        for target in line.targets
    }
    made = {name for name, _ in assigned}
    perhaps = {name for name, value in assigned if ast.unparse(value) == "None"} - flow
    without = flow if config.get("use_flow_sigmas") else set()
    passed = {
        str(keyword.arg): ast.unparse(keyword.value)
        for node in nodes
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "retrieve_timesteps"
        for keyword in node.keywords
        if keyword.arg in ("mu", "sigmas", "timesteps")
    }
    return [name for name, value in passed.items() if value in made - perhaps - without]


def _demands(scheduler: ClassSource) -> Iterator[tuple[str, ast.expr]]:
    """(argument, what its set_timesteps asserts where the argument is given)."""
    for function in scheduler.methods("set_timesteps"):
        for node in ast.walk(function):
            test = ast.unparse(node.test) if isinstance(node, ast.If) else ""
            if isinstance(node, ast.If) and test.endswith(" is not None"):
                name = test.removesuffix(" is not None")
                yield from ((name, line.test) for line in node.body if isinstance(line, ast.Assert))


def problems_of_declared(kind: ClassSource, declared: Mapping[str, Any]) -> Iterator[str]:
    """Keys that the scheduler's constructor doesn't have, and values that it doesn't know."""
    known = kind.parameters("__init__")
    usual = of_diffusers("DDIMScheduler")
    for key, value in declared.items():
        if key == "class" or not known:
            continue
        place = f"model.scheduler.{key}"
        if key not in known:
            hint = did_you_mean(key, known, LEAVE_OUT)
            yield f"{place} = {value!r}: {kind.name} has no {key!r}{hint}"
            continue
        expected = known[key].expects(value)
        if expected is None and isinstance(value, str) and not known[key].choices and usual:
            expected = usual.parameters("__init__").get(key, Parameter(key)).expects(value)
        if expected is not None:
            yield f"{place} = {value!r}; {kind.name} expects {expected}"
