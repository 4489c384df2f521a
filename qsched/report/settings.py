"""A study's settings in words: on the page, in the README of an exported folder, in the note."""

from dataclasses import dataclass

from qsched.pipelines.effective import effective
from qsched.pipelines.table import Model, layout_of
from qsched.report.numerals import count
from qsched.study.study import Study


@dataclass(frozen=True)
class Setting:
    """A setting in plain words on the page, in Markdown in the README; "" where it is not shown."""

    name: str
    page: str = ""
    card: str = ""


def settings(study: Study, *, network: str, stock: str = "") -> list[Setting]:
    """All of them, in their order. `network`: what quantization covered, "" where it isn't known;
    `stock`: the class of the scheduler."""
    tables = study.tables
    model, sampling, quantization = tables.model, tables.sampling, tables.quantization
    captions = len({prompt.text for prompt in study.held_out})
    drawn = effective(model, sampling)
    return [
        Setting("model", _model(model), _model_for_card(model)),
        Setting(
            "sampling",
            _joined(
                count(sampling.steps, "step"),
                f"guidance {drawn.guidance_in_words}",
                f"{drawn.size_in_words} pixels" if drawn.size else "",
                stock or drawn.scheduler,
                drawn.dtype,
            ),
        ),
        Setting(
            "quantization",
            " by ".join(filter(None, (quantization.scheme, quantization.backend))),
            network,
        ),
        Setting("network", network),
        Setting("scheduler", card=f"`{stock}`"),
        Setting("steps", card=str(sampling.steps)),
        Setting("guidance", card=drawn.guidance_in_words),
        Setting("width x height", card=drawn.size_in_words),
        Setting("dtype", card=drawn.dtype),
        Setting("objective", _objective(study)),
        Setting("search", _search(study)),
        Setting("calibration prompts", str(len(study.calibration))),
        Setting("held-out prompts", f"{captions}, {len(study.held_out)} images each set"),
        Setting("held-out metrics", ", ".join(tables.validation.metrics)),
    ]


def in_a_line(study: Study) -> str:
    """The settings that tell one study from another, in Markdown."""
    tables = study.tables
    return (
        f"**{tables.model.name}** at {tables.quantization.scheme}, {tables.sampling.steps} steps, "
        f"`{tables.search.parametrisation}` over {list(tables.search.bounds)}"
    )


def _model(model: Model) -> str:
    twin = "twin" if model.twin else ""
    own = model.weights
    denoiser = f"denoiser {own.source}/{own.file} {own.revision or ''}".strip() if own else ""
    return _joined(
        model.name, model.source, model.revision, denoiser, model.variant, model.dtype, twin
    )


def _model_for_card(model: Model) -> str:
    words = f"`{model.source or model.name}`"
    if model.revision:
        words += f" at revision `{model.revision}`"
    if model.config is not None:
        words += f", a single file laid out as `{layout_of(model)}`"
    if model.weights is not None:
        own = f"{model.weights.source}/{model.weights.file}"
        words += f", its denoiser's weights from `{own}`"
        words += f" at revision `{model.weights.revision}`" if model.weights.revision else ""
    loras = [
        f"the LoRA `{lora.source}/{lora.file}`"
        + (f" at {lora.scale:g}" if lora.scale != 1.0 else "")
        for lora in model.loras
    ]
    if loras:
        words += f", with {' and '.join(loras)}"
    if model.twin:
        words += "; **a tiny twin with random weights took its place**"
    return words


def _objective(study: Study) -> str:
    objective = study.tables.objective
    terms = " + ".join(
        f"{term.weight:g} x {f'log({term.scorer})' if term.log else term.scorer}"
        for term in objective.terms
    )
    return f"JAQ = {terms} ({objective.preset})"


def _search(study: Study) -> str:
    search = study.tables.search
    return _joined(
        f"{search.parametrisation} over [{search.bounds[0]:g}, {search.bounds[1]:g}]",
        f"sampler {search.sampler}",
        f"seed {search.seed}",
        f"stops below {search.stop_below:g}" if search.stop_below else "",
        f"prior {search.prior:g}" if search.prior else "",
    )


def _joined(*parts: str | None) -> str:
    return ", ".join(filter(None, parts))
