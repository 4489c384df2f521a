"""A commented study file for a model of the catalog, or of one's own: what `qsched init` writes."""

import json
import re
import shlex
from pathlib import Path
from string import Template

from qsched.errors import ConfigError, one_line
from qsched.pipelines.catalog import (
    DEMO_FOLDER,
    MODELS,
    Hints,
    ModelEntry,
    is_checkpoint,
    is_folder,
    model_entry,
)
from qsched.pipelines.folders import Contents, contents_of
from qsched.pipelines.table import Model, with_entry
from qsched.quantization.backend import backend_named
from qsched.quantization.schemes import backend_to_hold
from qsched.signatures import of_diffusers

SDCI_REVISION = "35636da44cdc7cef8916b122a12e4aa9e2df80c1"
TEMPLATE = Path(__file__).with_name("study.toml.tmpl")
OWN_TEMPLATE = Path(__file__).with_name("own.toml.tmpl")
DEMO = DEMO_FOLDER / "study" / "demo.toml"
"""The study of the shipped model, with its prompts beside it; a clone has links to it."""

OWN_STEPS = 4
"""Of a model of which nothing is known: what most were distilled for."""

_PRESETS = {
    "clip": ("CLIPScore + 2 * CLIP-IQA, as the paper has it for LCM and PCM", "hpsv2.1"),
    "hps": ("AQ-Map + 2 * HPSv2.1, as the paper has it for SDXL-Turbo and FLUX.1", "clipscore"),
}


def own_study_text(
    source: str, *, scheme: str | None = None, steps: int | None = None, name: str | None = None
) -> str:
    """The study file of a diffusers folder, single file or hub repository, by what its index and
    headers say.

    `scheme`: by default w4a8, or none for a network that is quantized already. `name`: of the file
    without its ending; the study's is as near to it as may be. Raises
    ModelError for what can't be had, QuantizationError for a scheme that does not exist.
    """
    model_entry(source)
    found = contents_of(source)
    scheme = scheme or ("none" if found.bits else "w4a8")
    backend = backend_named(backend_to_hold(scheme))
    here = is_folder(source) or is_checkpoint(source)
    title = Path(source).resolve().name if here else source
    name = name or _as_name(f"{title.rpartition('/')[2]}-{scheme}")
    guidance, why = _guidance(found)
    says = "  # it is quantized already: nothing is touched" if found.bits else ""
    lines = {
        "config": f'config = "{found.config}"    # its configs and tokenizers\n'
        if found.config
        else "",
        "part": f'part = "{found.part}"\n' if found.part else "",
        "variant": f'variant = "{found.variant}"\n' if found.variant else "",
        "dtype": f'dtype = "{found.dtype}"               # of its weights'
        if found.dtype
        else '# dtype = "bfloat16"              float32 without it: no weights here to tell',
        "size": f"height = {found.side}                    # its own\nwidth = {found.side}"
        if found.side
        else "# height = 1024                   the pipeline's own without them\n# width = 1024",
        "backend": "# skip = []"
        if scheme == "none"
        else f'backend = "{backend.name}"            # {backend.description}',
    }
    values = {
        "title": one_line(title),
        "scheme": scheme,
        "scheme_says": says,
        "file": _file(name),
        "name": _as_name(name),
        "model": json.dumps(str(Path(source).resolve()) if here else source),
        "pipeline": found.pipeline,
        "scheduler": found.scheduler or "EulerDiscreteScheduler",
        "steps": steps or OWN_STEPS,
        "guidance": guidance,
        "guidance_says": why,
        "preset_says": _PRESETS["clip"][0],
        "prompts_revision": SDCI_REVISION,
        **lines,
    }
    return Template(OWN_TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def _guidance(found: Contents) -> tuple[float, str]:
    """What a distilled model of this kind is mostly drawn with, and why."""
    kind = of_diffusers(found.pipeline)
    declared = kind.parameters("__call__").get("guidance_scale") if kind else None
    default = declared.default if declared else None
    if found.guided and default:
        return float(default), "its network takes guidance as an input; the pipeline's own value."
    own = f"; the pipeline's own would be {default}" if default else ""
    return 0.0, f"models of few steps are mostly drawn without guidance{own}."


def _file(stem: str) -> str:
    """The study file as a command names it."""
    return shlex.quote(one_line(f"{stem}.toml"))


def _as_name(text: str) -> str:
    """As a study may be called."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[-64:].lstrip("-._") or "own"


def study_text(
    model: str, *, scheme: str = "w4a8", steps: int | None = None, name: str | None = None
) -> str:
    """The study file of a model: the paper's preset and box.

    `name`: of the file without its ending; the study's is as near to it as may be. Raises
    ConfigError for a model without a template, or that was not distilled for `steps`;
    QuantizationError for a scheme that does not exist.
    """
    entry, hints = _known(model)
    steps = steps or hints.steps
    with_entry(Model(name=model), steps)
    backend = backend_named(backend_to_hold(scheme))
    name = name or study_name(model, scheme, steps)
    says, unseen = _PRESETS[hints.preset]
    values = {
        "title": entry.description.partition(",")[0],
        "scheme": scheme,
        "file": _file(name),
        "needs": f"needs a GPU with about {entry.gpu_gb:.0f} GB and a download of "
        f"{entry.download_gb:.1f} GB",
        "name": _as_name(name),
        "model": model,
        "name_space": " " * max(1, 23 - len(model)),
        "source": f"{entry.source}; {entry.licence}",
        "steps": steps,
        "steps_allowed": f"{', '.join(map(str, entry.steps or ()))} steps",
        "guidance": _own_guidance(entry),
        "backend": backend.name,
        "backend_space": " " * max(1, 20 - len(backend.name)),
        "backend_says": backend.description,
        "preset": hints.preset,
        "preset_space": " " * max(1, 21 - len(hints.preset)),
        "preset_says": says,
        "prompts_revision": SDCI_REVISION,
        "calibration": 64,
        "held_out": hints.held_out,
        "held_out_seeds": hints.held_out_seeds,
        "metrics": f'"pixels", "{unseen}", "pyiqa:topiq_nr"',
        "batch_size": hints.batch_size,
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def _own_guidance(entry: ModelEntry) -> str:
    """The comment that shows how the model is guided, and where that is set."""
    key, value = entry.guidance or ("guidance_scale", None)
    setting, others = f"{key} = {value}", "height, width and call = { ... }"
    if key != "guidance_scale":
        setting, others = f"call = {{ {setting} }}", "height and width"
    return f"# {setting}          the model's own; {others} likewise"


def study_name(model: str, scheme: str, steps: int) -> str:
    """The name of a model's study, such as sdxl-turbo-w4a8 or pcm-sd15-8step-w8a8."""
    _, hints = _known(model)
    name = hints.study
    if "{steps}" not in name and steps != hints.steps:
        name += "-{steps}step"
    return f"{name.format(steps=steps)}-{scheme}"


def studies() -> dict[str, str]:
    """The study files that come with qsched, by file name: each model at three schemes."""
    return {
        f"{study_name(name, scheme, entry.hints.steps)}.toml": study_text(name, scheme=scheme)
        for name, entry in MODELS.items()
        if entry.hints
        for scheme in ("w8a8", "w4a8", "nf4")
    }


def _known(model: str) -> tuple[ModelEntry, Hints]:
    """A model's entry with its hints. Raises ConfigError for one without."""
    entry = MODELS.get(model)
    if entry is None or entry.hints is None:
        known = ", ".join(name for name, each in MODELS.items() if each.hints)
        raise ConfigError(f"no template for {model!r}; expected one of {known}")
    return entry, entry.hints
