"""Whether a pipeline and its scheduler take what a study says; a setting that does nothing is an
error.

    list(problems(study.tables.model, study.tables.sampling))     # without torch, for `check`
    require_taken(pipeline, sampling)                             # the pipeline itself

Both read the same signatures: `check` those of diffusers' source, a worker those of the classes
that were loaded, whoever wrote them.
"""

import ast
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qsched.errors import ModelError
from qsched.pipelines import catalog
from qsched.pipelines.agreement.kinds import denoisers, refusal
from qsched.pipelines.agreement.places import problems_of_places
from qsched.pipelines.agreement.schedulers import (
    LEAVE_OUT,
    config_of,
    problems_of_declared,
    problems_of_pair,
    problems_of_scheduler,
    read,
    scheduler_of,
)
from qsched.pipelines.folders import part_of
from qsched.pipelines.table import Model, Sampling, layout_of
from qsched.schedule.parametrisations import Parametrisation
from qsched.schedule.schedulers import AVERAGING, predicts_x0
from qsched.signatures import (
    ClassSource,
    Parameter,
    did_you_mean,
    evaluated,
    names_in_diffusers,
    of_class,
    of_diffusers,
)

NAMED = ("guidance_scale", "height", "width", "sigmas", "timesteps")
"""The keys of `[sampling]` that are arguments of the pipeline, as `sampling.call` holds others."""


def problems(model: Model, sampling: Sampling) -> Iterator[str]:
    """What can be known without weights to go wrong, each as key, value, rule and remedy."""
    yield from problems_of_places(model)
    yield from _problems_of_class(model)
    scheduler = scheduler_of(model)
    if scheduler is not None:
        yield from problems_of_scheduler(*scheduler, model)
    elif model.scheduler and (known := names_in_diffusers("Scheduler")):
        declared = str(model.scheduler["class"])
        yield (
            f"model.scheduler.class = {declared!r}; expected a scheduler of diffusers"
            f"{did_you_mean(declared, known)}"
        )
    kind = _pipeline(model)
    if kind is None or refusal(kind):
        return
    if scheduler is not None:
        yield from problems_of_pair(kind, *scheduler, config_of(scheduler[0], model))
    yield from _problems_of_part(kind, model.part)
    yield from _problems_of_call(kind, sampling, scheduler[0] if scheduler else None)
    yield from _problems_of_size(kind, sampling, _stand_in(kind, layout_of(model)))


def unread(model: Model, sampling: Sampling) -> Iterator[str]:
    """What a study sets that its classes take and nothing reads: no error, and worth saying."""
    kind, found = _pipeline(model), scheduler_of(model)
    for key in (model.scheduler or {}).keys() - {"class"}:
        if kind and found and not (found[0].reads(key) or kind.reads(key)):
            yield f"model.scheduler.{key} does nothing: {found[0].name} doesn't read it"
    if kind and not model.twin and (why := _deaf(kind, Path(layout_of(model)), sampling)):
        yield (
            f"sampling.guidance_scale = {sampling.guidance_scale:g} does nothing: {why}; set it to "
            "0.0"
        )


def _deaf(kind: ClassSource, folder: Path, sampling: Sampling) -> str | None:
    """Why guidance has no effect on a folder's pipeline; None if it has one, or nothing tells."""
    index, guidance = read(folder / "model_index.json"), sampling.guidance_scale or 0.0
    if index.get("is_distilled") and guidance > 1:
        return "the model was distilled to draw without (is_distilled in its index)"
    config = read(folder / (part_of(index) or "") / "config.json")
    if guidance and config.get("guidance_embeds") is False and kind.reads("guidance_embeds"):
        return "its network takes none (guidance_embeds is false in its config)"
    return None


def problems_of_space(model: Model, space: Parametrisation) -> Iterator[str]:
    """An average that the model's scheduler can't make."""
    found = scheduler_of(model)
    if found and space.guess and not averages(model):
        yield (
            f"search.parametrisation = {space.name!r}: the steps of {found[0].name} predict no x0 "
            f"that could be averaged; use 'per-step', or one of {AVERAGING}"
        )


def require_taken(pipeline: Any, sampling: Sampling) -> None:
    """Raises ModelError for a pipeline that can't be calibrated, or with the first setting that
    it doesn't take."""
    kind, scheduler = of_class(type(pipeline)), of_class(type(pipeline.scheduler))
    require_text_to_image(kind)
    for problem in (
        *_problems_of_call(kind, sampling, scheduler),
        *_problems_of_size(kind, sampling, pipeline),
    ):
        raise ModelError(problem)


def require_text_to_image(kind: ClassSource) -> None:
    """Raises ModelError for a class of which no pipeline can be calibrated."""
    if (why := refusal(kind)) is not None:
        raise ModelError(f"{kind.name}: {why}")


def require_declared(scheduler: type, declared: Mapping[str, Any]) -> None:
    """Raises ModelError with the first key of `model.scheduler` that this class doesn't take."""
    for problem in problems_of_declared(of_class(scheduler), declared):
        raise ModelError(problem)


def averages(model: Model) -> bool:
    """Whether it is known of the model's scheduler that its x0 predictions can be averaged."""
    found = scheduler_of(model)
    return found is not None and predicts_x0(found[0].names, config_of(found[0], model))


def _problems_of_class(model: Model) -> Iterator[str]:
    """A pipeline class that doesn't exist, isn't the folder's, or can't be calibrated."""
    name, known = model.pipeline, names_in_diffusers("Pipeline")
    own = catalog.class_in(layout_of(model))
    if name is not None and known:
        if own is not None and name not in (own, catalog.model_entry(model.name).pipeline):
            yield f"model.pipeline = {name!r}: the folder's is {own}; leave it out"
            return
        if own is None and name not in known:
            hint = did_you_mean(name, known)
            yield f"model.pipeline = {name!r}; expected a pipeline of diffusers{hint}"
    kind = _pipeline(model)
    if kind is not None and (why := refusal(kind)) is not None:
        says = f"the folder's {own}" if own else f"model.pipeline = {name!r}"
        yield f"{says}: {why}"


def _pipeline(model: Model) -> ClassSource | None:
    """The class of the pipeline that the model will have; None if unknown."""
    name = catalog.class_in(layout_of(model)) or model.pipeline
    return of_diffusers(name) if name else None


def _problems_of_part(kind: ClassSource, part: str | None) -> Iterator[str]:
    """A denoiser that the class doesn't have, or doesn't call at each step."""
    components, called = kind.parameters("__init__"), denoisers(kind)
    if part is None or part in called or not components:
        return
    if called:
        yield f"model.part = {part!r}: the steps of {kind.name} call {called[0]}; leave it out"
    elif part not in components:
        hint = did_you_mean(part, components, LEAVE_OUT)
        yield f"model.part = {part!r}: {kind.name} has no {part!r}{hint}"


def _problems_of_call(
    kind: ClassSource, sampling: Sampling, scheduler: ClassSource | None
) -> Iterator[str]:
    """Arguments that the pipeline doesn't have, values of another type, and what has no effect."""
    known = kind.parameters("__call__")
    if not known:
        return
    for key, parameter in known.items():
        if parameter.required and key not in {"prompt", *sampling.arguments()}:
            yield f"sampling.call.{key} is missing; {kind.name} draws nothing without it"
    for key, value in sampling.arguments().items():
        place = f"sampling.{key}" if key in NAMED else f"sampling.call.{key}"
        place = "sampling.none" if value is None else place
        if key not in known and key != "num_inference_steps":
            hint = did_you_mean(key, known, LEAVE_OUT)
            yield f"{place} = {value!r}: {kind.name} takes no {key!r}{hint}"
        elif (expected := _expected(known, key, value)) is not None:
            yield f"{place} = {value!r}; {kind.name} expects {expected}"
        elif key in ("sigmas", "timesteps") and value is not None:
            yield from _problems_of_schedule(place, key, value, sampling, scheduler)
    yield from _problems_of_guidance(kind, known, sampling)


def _expected(known: Mapping[str, Parameter], key: str, value: Any) -> str | None:
    return known[key].expects(value) if key in known and value is not None else None


def _problems_of_schedule(
    place: str, key: str, value: Any, sampling: Sampling, scheduler: ClassSource | None
) -> Iterator[str]:
    """A schedule of one's own, which the scheduler has to take, a number for each step."""
    taken = scheduler.parameters("set_timesteps") if scheduler else {}
    if taken and key not in taken and scheduler:
        yield f"{place}: {scheduler.name} takes no {key} of one's own; leave it out"
    elif sampling.timesteps and sampling.sigmas:
        yield f"{place}: both sigmas and timesteps; expected one of them"
    elif len(value) < sampling.steps:
        yield f"{place} has {len(value)} numbers; expected one a step, {sampling.steps}"


def _problems_of_guidance(
    kind: ClassSource, known: Mapping[str, Parameter], sampling: Sampling
) -> Iterator[str]:
    """A negative prompt without guidance, and true guidance without a negative prompt."""
    key = "true_cfg_scale" if "true_cfg_scale" in known else "guidance_scale"
    threshold = _guides_above(kind, key)
    if key not in known or threshold is None:
        return
    given = {**sampling.call, "guidance_scale": sampling.guidance_scale}.get(key)
    scale = known[key].default if given is None else given
    negative = sampling.call.get("negative_prompt")
    place = f"sampling.{'call.' if key == 'true_cfg_scale' else ''}{key}"
    if negative and isinstance(scale, int | float) and scale <= threshold:
        yield (
            f"sampling.call.negative_prompt = {negative!r} does nothing at {key} = {scale:g}; "
            f"set {place} above {threshold:g}, or leave it out"
        )
    if key == "true_cfg_scale" and given is not None and given > threshold and negative is None:
        yield (
            f"{place} = {given:g} does nothing without a negative prompt; "
            'set sampling.call.negative_prompt, " " for an empty one'
        )


def _guides_above(kind: ClassSource, key: str) -> float | None:
    """The guidance above which the class reads a negative prompt; None where it doesn't say."""
    for node in _comparisons(kind, "do_classifier_free_guidance", "__call__"):
        number = node.comparators[0]
        if (
            ast.unparse(node.left).rpartition(".")[2].lstrip("_") == key
            and isinstance(node.ops[0], ast.Gt)
            and isinstance(number, ast.Constant)
            and isinstance(number.value, int | float)
        ):
            return number.value
    return None


def _problems_of_size(kind: ClassSource, sampling: Sampling, pipeline: Any) -> Iterator[str]:
    """A height or width that the pipeline refuses or rounds. `pipeline`: or what stands for it."""
    multiple = math.lcm(*_multiples(kind, pipeline))
    for key in ("height", "width"):
        pixels = getattr(sampling, key)
        if multiple > 1 and pixels is not None and pixels % multiple:
            near = max(1, round(pixels / multiple)) * multiple
            yield (
                f"sampling.{key} = {pixels}; {kind.name} makes multiples of {multiple}; "
                f"set it to {near}"
            )


def _multiples(kind: ClassSource, pipeline: Any) -> Iterator[int]:
    """What the class divides height and width by, as far as it can be told from `pipeline`."""
    divisors = [
        node.left.right
        for node in _comparisons(kind, "__call__", "check_inputs")
        if isinstance(node.left, ast.BinOp)
        and isinstance(node.left.op, ast.Mod)
        and ast.unparse(node.left.left) in ("height", "width")
    ]
    named = {node.id for node in divisors if isinstance(node, ast.Name)}
    divisors += [
        node.value
        for method in ("__call__", "check_inputs")
        for function in kind.methods(method)
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and named.intersection(map(ast.unparse, node.targets))
    ]
    for divisor in (*divisors, ast.parse("self.vae_scale_factor", mode="eval").body):
        value = evaluated(divisor, pipeline)
        if isinstance(value, int) and value > 0:
            yield value


def _comparisons(kind: ClassSource, *methods: str) -> Iterator[ast.Compare]:
    for function in (function for method in methods for function in kind.methods(method)):
        yield from (node for node in ast.walk(function) if isinstance(node, ast.Compare))


def _stand_in(kind: ClassSource, source: str) -> Any:
    """What tells a folder's sizes as the loaded pipeline would: its autoencoder's config."""
    config = read(Path(source) / "vae" / "config.json")
    pipeline = SimpleNamespace()
    if config:
        pipeline.vae = SimpleNamespace(config=SimpleNamespace(**config))
        for function in kind.methods("__init__"):
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and "self.vae_scale_factor" in map(
                    ast.unparse, node.targets
                ):
                    pipeline.vae_scale_factor = evaluated(node.value, pipeline)
    return pipeline
