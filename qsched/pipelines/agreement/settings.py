"""Whether a pipeline and its scheduler take what a study says; a setting that does nothing is an
error.

    list(problems(study.tables.model, study.tables.sampling))     # without torch, for `check`
    require_taken(pipeline, sampling)                             # the pipeline itself

Both read the same signatures: `check` those of diffusers' source, a worker those of the classes
that were loaded, whoever wrote them.
"""

import ast
import math
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qsched.documents import is_file, is_folder, json_object
from qsched.errors import DocumentError, ModelError
from qsched.pipelines import catalog
from qsched.pipelines.agreement.kinds import denoisers, refusal
from qsched.pipelines.folders import part_of
from qsched.pipelines.table import (
    LoraTable,
    Model,
    Sampling,
    WeightsTable,
    layout_of,
    source_of,
)
from qsched.schedule.parametrisations import Parametrisation
from qsched.schedule.schedulers import AVERAGING, WORKING, predicts_x0
from qsched.schedule.schedulers import refusal as refusal_of_scheduler
from qsched.signatures import (
    ClassSource,
    Parameter,
    names_in_diffusers,
    of_class,
    of_diffusers,
)

NAMED = ("guidance_scale", "height", "width", "sigmas", "timesteps")
"""The keys of `[sampling]` that are arguments of the pipeline, as `sampling.call` holds others."""

_EVALUATED = {"len": len, "getattr": getattr, "hasattr": hasattr}
"""What an expression of diffusers may call where it is evaluated."""


def problems(model: Model, sampling: Sampling) -> Iterator[str]:
    """What can be known without weights to go wrong, each as key, value, rule and remedy."""
    yield from _problems_of_places(model)
    yield from _problems_of_class(model)
    scheduler = _scheduler(model)
    if scheduler is not None:
        yield from _problems_of_scheduler(*scheduler, model)
    elif model.scheduler and (known := names_in_diffusers("Scheduler")):
        declared = str(model.scheduler["class"])
        yield (
            f"model.scheduler.class = {declared!r}; expected a scheduler of diffusers"
            f"{_did_you_mean(declared, known)}"
        )
    kind = _pipeline(model)
    if kind is None or refusal(kind):
        return
    if scheduler is not None:
        yield from _problems_of_pair(kind, *scheduler, _config(scheduler[0], model))
    yield from _problems_of_part(kind, model.part)
    yield from _problems_of_call(kind, sampling, scheduler[0] if scheduler else None)
    yield from _problems_of_size(kind, sampling, _stand_in(kind, layout_of(model)))


def unread(model: Model, sampling: Sampling) -> Iterator[str]:
    """What a study sets that its classes take and nothing reads: no error, and worth saying."""
    kind, found = _pipeline(model), _scheduler(model)
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
    index, guidance = _json(folder / "model_index.json"), sampling.guidance_scale or 0.0
    if index.get("is_distilled") and guidance > 1:
        return "the model was distilled to draw without (is_distilled in its index)"
    config = _json(folder / (part_of(index) or "") / "config.json")
    if guidance and config.get("guidance_embeds") is False and kind.reads("guidance_embeds"):
        return "its network takes none (guidance_embeds is false in its config)"
    return None


def problems_of_space(model: Model, space: Parametrisation) -> Iterator[str]:
    """An average that the model's scheduler can't make."""
    found = _scheduler(model)
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
    for problem in _problems_of_declared(of_class(scheduler), declared):
        raise ModelError(problem)


def averages(model: Model) -> bool:
    """Whether it is known of the model's scheduler that its x0 predictions can be averaged."""
    found = _scheduler(model)
    return found is not None and predicts_x0(found[0].names, _config(found[0], model))


def _problems_of_places(model: Model) -> Iterator[str]:
    """Folders and files that should be here, and revisions of what has none; a twin needs none."""
    if model.twin:
        return
    source = source_of(model)
    key = "model.source" if model.source and model.source != model.name else "model.name"
    if catalog.is_checkpoint(source):
        yield from _problems_of_file(model, key)
    else:
        here = catalog.is_folder(source)
        if not here and (
            is_folder(Path(source)) or is_file(Path(source)) or source.startswith((".", "/", "~"))
        ):
            yield (
                f"{key} = {source!r}; expected a folder with a model_index.json; correct the path, "
                "which is relative to the study file"
            )
        elif model.revision and (here or catalog.is_function(source)):
            yield f"model.revision = {model.revision!r}: {source} has no revisions; leave it out"
        if model.config is not None:
            yield f"model.config = {model.config!r}: {source} has configs of its own; leave it out"
    if model.weights is not None:
        yield from _problems_of_added("model.weights", model.weights)
    for lora in model.loras:
        yield from _problems_of_added("model.lora", lora)


def _problems_of_file(model: Model, key: str) -> Iterator[str]:
    """A single file that isn't here, or that nothing describes."""
    source = source_of(model)
    if source.endswith(".gguf"):
        yield (
            f"{key} = {source!r}: a GGUF file holds one network; name a function that builds the "
            "pipeline"
        )
        return
    if catalog.file_in_repository(source) is None:
        if not is_file(Path(source)):
            yield f"{key} = {source!r}: no such file; correct the path"
        elif model.revision:
            yield f"model.revision = {model.revision!r}: {source} has no revisions; leave it out"
    if model.config is None:
        yield catalog.CONFIG_MISSING
    elif model.pipeline is None:
        yield "model.pipeline is missing; set it to the diffusers class of the single file"
    layout = layout_of(model)
    if layout.startswith((".", "/", "~")) and not catalog.is_folder(layout):
        yield f"model.config = {layout!r}; expected a folder with a model_index.json"


def _problems_of_added(name: str, table: LoraTable | WeightsTable) -> Iterator[str]:
    """A file of `[model.lora]` or `[model.weights]` that should be here and isn't."""
    folder = Path(table.source)
    local = is_folder(folder) or table.source.startswith((".", "/", "~"))
    if local and not is_file(folder / table.file):
        yield f"{name}.file = {table.file!r}: not in {table.source}; correct it"
    elif local and table.revision:
        yield f"{name}.revision = {table.revision!r}: {folder} is a folder; leave it out"


def _problems_of_class(model: Model) -> Iterator[str]:
    """A pipeline class that doesn't exist, isn't the folder's, or can't be calibrated."""
    name, known = model.pipeline, names_in_diffusers("Pipeline")
    own = catalog.class_in(layout_of(model))
    if name is not None and known:
        if own is not None and name not in (own, catalog.model_entry(model.name).pipeline):
            yield f"model.pipeline = {name!r}: the folder's is {own}; leave it out"
            return
        if own is None and name not in known:
            hint = _did_you_mean(name, known)
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
        yield f"model.part = {part!r}: {kind.name} has no {part!r}{_nearest(part, components)}"


def _scheduler(model: Model) -> tuple[ClassSource, str] | None:
    """The class of the scheduler that the model will have, and who says so; None if unknown."""
    declared = model.scheduler or catalog.model_entry(model.name).scheduler
    name = declared["class"] if declared else _scheduler_in(layout_of(model)).get("_class_name")
    kind = of_diffusers(str(name))
    says = f"model.scheduler.class = {name!r}" if declared else f"the folder's {name}"
    return (kind, says) if kind is not None else None


def _scheduler_in(source: str) -> Mapping[str, Any]:
    """The scheduler's config in a folder; empty where there is none."""
    return _json(Path(source) / "scheduler" / "scheduler_config.json")


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return json_object(path)
    except DocumentError:
        return {}


def _config(kind: ClassSource, model: Model) -> Mapping[str, Any]:
    """The whole config: the class's defaults, the folder's, what is declared."""
    defaults = {name: each.default for name, each in kind.parameters("__init__").items()}
    declared = model.scheduler or catalog.model_entry(model.name).scheduler or {}
    return defaults | dict(_scheduler_in(layout_of(model))) | dict(declared)


def _problems_of_scheduler(kind: ClassSource, says: str, model: Model) -> Iterator[str]:
    reason = refusal_of_scheduler(
        kind.names, list(kind.parameters("step")), kind.constant("order") or 1
    )
    if reason:
        yield f"{says}: {reason}; set model.scheduler to one of {WORKING}"
    yield from _problems_of_declared(kind, model.scheduler or {})


def _problems_of_pair(
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
        if name in given and _evaluated(test, this) is False:
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


def _problems_of_declared(kind: ClassSource, declared: Mapping[str, Any]) -> Iterator[str]:
    """Keys that the scheduler's constructor doesn't have, and values that it doesn't know."""
    known = kind.parameters("__init__")
    usual = of_diffusers("DDIMScheduler")
    for key, value in declared.items():
        if key == "class" or not known:
            continue
        place = f"model.scheduler.{key}"
        if key not in known:
            yield f"{place} = {value!r}: {kind.name} has no {key!r}{_nearest(key, known)}"
            continue
        expected = known[key].expects(value)
        if expected is None and isinstance(value, str) and not known[key].choices and usual:
            expected = usual.parameters("__init__").get(key, Parameter(key)).expects(value)
        if expected is not None:
            yield f"{place} = {value!r}; {kind.name} expects {expected}"


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
            yield f"{place} = {value!r}: {kind.name} takes no {key!r}{_nearest(key, known)}"
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
        value = _evaluated(divisor, pipeline)
        if isinstance(value, int) and value > 0:
            yield value


def _comparisons(kind: ClassSource, *methods: str) -> Iterator[ast.Compare]:
    for function in (function for method in methods for function in kind.methods(method)):
        yield from (node for node in ast.walk(function) if isinstance(node, ast.Compare))


def _evaluated(expression: ast.expr, pipeline: Any) -> Any:
    """The value of an expression of diffusers' own source about `self`; None if it needs more."""
    code = compile(ast.Expression(expression), "diffusers", "eval")
    try:
        return eval(code, {"__builtins__": {}, "self": pipeline, **_EVALUATED})
    except Exception:  # noqa: BLE001 - it needs what only the pipeline has
        return None


def _stand_in(kind: ClassSource, source: str) -> Any:
    """What tells a folder's sizes as the loaded pipeline would: its autoencoder's config."""
    config = _json(Path(source) / "vae" / "config.json")
    pipeline = SimpleNamespace()
    if config:
        pipeline.vae = SimpleNamespace(config=SimpleNamespace(**config))
        for function in kind.methods("__init__"):
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and "self.vae_scale_factor" in map(
                    ast.unparse, node.targets
                ):
                    pipeline.vae_scale_factor = _evaluated(node.value, pipeline)
    return pipeline


def _nearest(key: str, known: Mapping[str, Parameter]) -> str:
    return _did_you_mean(key, known) or "; leave it out"


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
