"""The README of an exported folder: what it is for, what was proven, and code to paste."""

import re
from typing import Any

import yaml

from qsched.pipelines import catalog
from qsched.pipelines.table import Model, source_of
from qsched.proof.outcome import Proof, Taken
from qsched.report import files, rows
from qsched.report.sample_code import sample_code
from qsched.report.settings import settings
from qsched.schedule import standalone
from qsched.schedule.coefficients import Coefficients
from qsched.study.study import Study

HUB_LICENCES = {
    "Apache-2.0": "apache-2.0",
    "Apache-2.0, the LoRA as well": "apache-2.0",
    "MIT": "mit",
    "CreativeML Open RAIL-M": "creativeml-openrail-m",
    "CreativeML Open RAIL++-M": "openrail++",
}
"""The hub's names of licences that the catalogue states without a condition."""

_FORCED = (
    "**Not proven.** These are the best coefficients that the search found, exported with "
    "`--force` against the verdict."
)
_IDENTITY = (
    "So the coefficients here are all 1, and the scheduler does what the stock one does. "
    "`qsched export --force` writes the best that the search found, proven or not."
)
_TRUST = (
    "`trust_remote_code=True` runs [{file}]({file}), the scheduler's class in one file; it needs "
    "diffusers {diffusers} and torch, not qsched. Where this folder is a repository of the hub: "
    '`AutoModel.from_pretrained("OWNER/NAME", subfolder="{scheduler}", trust_remote_code=True)`.'
)
_TRAPS = """\
- `{stock}.from_pretrained("./{scheduler}")` **drops the coefficients silently**: it makes a stock
  scheduler, whose `.config` still shows them. Load it as above. To be sure:
  `pipeline.scheduler.coefficients` exists on the right one only.
- `from_config` of another class drops them too, and so does a pipeline that builds its own
  scheduler (`DDIMPipeline`).
- After `pipeline.save_pretrained(FOLDER)` the whole pipeline loads with
  `DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)`: saving brings the file along.
  Only weights that diffusers can save survive it, so not simulated quantization."""


def model_card(study: Study, proof: Proof, taken: Taken, stock: str) -> str:
    """Markdown of about a page. `proof`: with a verdict. `taken`: what is exported beside it, for
    the scheduler class `stock`."""
    verdict, code = proof.badge.word, sample_code(study)
    versions = {name: found for name, found in proof.versions.items() if found}
    numbers = files.COEFFICIENTS
    file = f"{files.SCHEDULER}/{standalone.module_name(stock)}.py"
    lines = [
        "---",
        *_metadata(study, proof, taken),
        "---",
        "",
        f"# {study.name}: {_title(proof, taken, stock)}",
        "",
        f"**Verdict: {verdict}.** {proof.sentence}",
        *([] if proof.proven else ["", _FORCED if taken.forced else _IDENTITY]),
        "",
        "| | |",
        "|---|---|",
        *(
            f"| {each.name} | {each.card} |"
            for each in settings(study, network=proof.network, stock=stock)
            if each.card
        ),
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
            file=file, diffusers=versions.get("diffusers", ""), scheduler=files.SCHEDULER
        ),
        *_remarks(study.tables.model, code),
        "",
        "## Traps",
        "",
        _TRAPS.format(stock=stock, scheduler=files.SCHEDULER),
        "",
        "## The numbers",
        "",
        *_numbers(taken.coefficients),
        "",
        f"`x_next = step(c_eps * model_output, t, c_x * x)`; 1 changes nothing. `{numbers}` "
        "has them as `model` (c_eps), `sample` (c_x) and, where there is one, `average` (the "
        "weights of the steps' x0 predictions in the final latents), one number a step, in the "
        "order of the steps; `provenance` says where they come from, and `digest` shows a later "
        f'change. `qsched.Coefficients.load("{numbers}")` and `qsched generate '
        f"--coefficients {numbers}` read it.",
        "",
        "## What was measured",
        "",
        *rows.card(rows.rows_of(proof)),
        "",
        f"Held-out prompts: {len({p.text for p in study.held_out})}, with seeds that the search "
        f"never saw. *calibrated*: the best of {proof.trials} trials"
        f"{'' if proof.proven or taken.forced else ', which is not what is exported here'}. "
        "Gain: calibrated - quantized, paired, with its interval. \\*: a metric that the search "
        "never saw.",
        "",
        "Made with "
        + ", ".join(f"{name} {found}" for name, found in versions.items())
        + f"; run `{proof.run}`.",
        "",
    ]
    return "\n".join(lines)


def _title(proof: Proof, taken: Taken, stock: str) -> str:
    """What is exported, by what is proven of it."""
    if proof.proven:
        return f"a calibrated {stock}"
    if taken.forced:
        return f"a {stock} with coefficients that are not proven"
    return f"a {stock} as it was, since no improvement is proven"


def _metadata(study: Study, proof: Proof, taken: Taken) -> list[str]:
    """What the hub reads of a card: YAML between two lines of dashes."""
    tables = study.tables
    tags = ["qsched", "scheduler", "quantization", tables.quantization.scheme]
    tags += ["twin"] if tables.model.twin else []
    tags += ["calibrated" if proof.proven else "not-proven" if taken.forced else "unmodified"]
    found: dict[str, Any] = {"library_name": files.LIBRARY, "pipeline_tag": "text-to-image"}
    bases = [] if tables.model.twin else _bases(tables.model)
    if bases:
        found["base_model"] = bases if len(bases) > 1 else bases[0]
    found |= {} if tables.model.twin else _licence(tables.model)
    return yaml.safe_dump(found | {"tags": tags}, sort_keys=False, allow_unicode=True).splitlines()


def _bases(model: Model) -> list[str]:
    """The hub's repositories that the model is made of."""
    parts = [source_of(model), *([model.weights.source] if model.weights else [])]
    parts += [lora.source for lora in model.loras]
    found = (catalog.repository_of(part) for part in parts)
    return list(dict.fromkeys(each for each in found if each))


def _licence(model: Model) -> dict[str, str]:
    """The base model's licence, by the hub's name where it has one; nothing of a model of one's
    own, of which nothing is known."""
    entry = catalog.model_entry(model.name)
    if entry.name not in catalog.MODELS or model.source not in (None, entry.source):
        return {}
    if entry.licence in HUB_LICENCES:
        return {"license": HUB_LICENCES[entry.licence]}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9]+", "-", entry.licence.lower())}


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
