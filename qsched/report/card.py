"""The README of an exported folder: what it is for, what was proven, and code to paste."""

from collections.abc import Mapping
from typing import Any

from qsched.pipelines import catalog
from qsched.pipelines.table import Model
from qsched.report.numerals import Change, figure
from qsched.report.sample_code import sample_code
from qsched.schedule import standalone
from qsched.schedule.coefficients import Coefficients
from qsched.study.study import Study

_FORCED = (
    "**Not proven.** These are the best coefficients that the search found, exported with "
    "`--force` against the verdict."
)
_IDENTITY = (
    "So the coefficients here are all 1, and the scheduler does what the stock one does. "
    "`qsched export --force` writes the best that the search found, proven or not."
)
_TRUST = (
    "`trust_remote_code=True` runs [scheduler/{file}](scheduler/{file}), the scheduler's class in "
    "one file; it needs diffusers {diffusers} and torch, not qsched."
)
_TRAPS = """\
- `{stock}.from_pretrained("./scheduler")` **drops the coefficients silently**: it makes a stock
  scheduler, whose `.config` still shows them. Load it as above. To be sure:
  `pipeline.scheduler.coefficients` exists on the right one only.
- `from_config` of another class drops them too, and so does a pipeline that builds its own
  scheduler (`DDIMPipeline`).
- After `pipeline.save_pretrained(FOLDER)` the whole pipeline loads with
  `DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)`: saving brings the file along.
  Only weights that diffusers can save survive it, so not simulated quantization."""


def model_card(
    study: Study,
    outcome: Mapping[str, Any],
    coefficients: Coefficients,
    stock: str,
    *,
    forced: bool,
) -> str:
    """Markdown of about a page. `outcome`: what a validation stored. `coefficients`: what is
    exported beside it, for the scheduler class `stock`; `forced`: against the verdict.
    """
    verdict = str(outcome["verdict"])
    versions, code = outcome["versions"], sample_code(study)
    lines = [
        f"# {study.name}: a calibrated {stock}",
        "",
        f"**Verdict: {verdict.replace('_', ' ')}.** {outcome['sentence']}",
        *([] if verdict == "improved" else ["", _FORCED if forced else _IDENTITY]),
        "",
        *_purpose(study, outcome["network"], stock),
        "",
        "For this and nothing else: another number of steps is refused, and nothing is known of "
        "another model, quantization, guidance or size.",
        "",
        "## Use it",
        "",
        "In this folder:",
        "",
        "```python",
        code,
        "```",
        "",
        _TRUST.format(
            file=f"{standalone.module_name(stock)}.py", diffusers=versions.get("diffusers", "")
        ),
        *_remarks(study.tables.model, code),
        "",
        "## Traps",
        "",
        _TRAPS.format(stock=stock),
        "",
        "## The numbers",
        "",
        *_numbers(coefficients),
        "",
        "`x_next = step(c_eps * model_output, t, c_x * x)`; 1 changes nothing. `coefficients.json` "
        "has them as `model` (c_eps), `sample` (c_x) and, where there is one, `average` (the "
        "weights of the steps' x0 predictions in the final latents), one number a step, in the "
        "order of the steps; `provenance` says where they come from, and `digest` shows a later "
        'change. `qsched.Coefficients.load("coefficients.json")` and `qsched generate '
        "--coefficients coefficients.json` read it.",
        "",
        "## What was measured",
        "",
        *_held_out({**outcome["held_out"], **outcome.get("distributions", {})}),
        "",
        f"Held-out prompts: {len({p.text for p in study.held_out})}, with seeds that the search "
        f"never saw. *calibrated*: the best of {outcome['trials']} trials"
        f"{'' if verdict == 'improved' or forced else ', which is not what is exported here'}. "
        "Gain: calibrated - quantized, paired, with its interval. \\*: a metric that the search "
        "never saw.",
        "",
        "Made with " + ", ".join(f"{name} {found}" for name, found in versions.items() if found),
        "",
    ]
    return "\n".join(lines)


def _purpose(study: Study, network: str, stock: str) -> list[str]:
    model, sampling = study.tables.model, study.tables.sampling
    place = model.source or model.name
    at = f" at revision `{model.revision}`" if model.revision else ""
    lora = f", with the LoRA `{model.lora.source}/{model.lora.file}`" if model.lora else ""
    twin = "; **a tiny twin with random weights took its place**" if model.twin else ""
    size = f"{sampling.width or 'default'} x {sampling.height or 'default'}"
    rows = {
        "model": f"`{place}`{at}{lora}{twin}",
        "quantization": network,
        "scheduler": f"`{stock}`",
        "steps": str(sampling.steps),
        "guidance": str(sampling.guidance_scale),
        "width x height": size,
        "dtype": str(model.dtype or "float32"),
    }
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]


def _remarks(model: Model, code: str) -> list[str]:
    """What the reader of the code has to know of the study."""
    notes = []
    if "import quantize" in code:
        notes.append("This quantization is qsched's own, so the code imports it.")
    known = catalog.PIPELINES.get(model.pipeline or "")
    return [*notes, *(known.remarks if known else ())]


def _numbers(coefficients: Coefficients) -> list[str]:
    heads = ["step", "c_eps", "c_x", *(["weight of x0"] if coefficients.average else [])]
    series = [coefficients.model, coefficients.sample]
    series += [coefficients.average] if coefficients.average else []
    return [
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
        *(
            f"| {step} | {' | '.join(f'{value:.4f}' for value in values)} |"
            for step, values in enumerate(zip(*series, strict=True), start=1)
        ),
    ]


def _held_out(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = []
    for name, row in metrics.items():
        means = [figure(row[key]) for key in ("full_precision", "identity", "calibrated")]
        gain = Change.of(row)
        cells = (f"{name}{_marks(row)}", *means, f"{gain.number} {gain.interval}")
        rows.append(f"| {' | '.join(cells)} |")
    return ["| | full precision | quantized | calibrated | gain |", "|---|---|---|---|---|", *rows]


def _marks(row: Mapping[str, Any]) -> str:
    lower = " (lower is better)" if row.get("lower_is_better") else ""
    return lower + (" \\*" if row.get("independent") else "")
