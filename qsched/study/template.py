"""A commented study file for a model of the catalog: what `qsched init` writes."""

from dataclasses import dataclass
from pathlib import Path
from string import Template

from qsched.errors import ConfigError
from qsched.pipelines.catalog import MODELS
from qsched.pipelines.table import Model, with_entry
from qsched.quantization.backend import backend_named
from qsched.quantization.schemes import backend_to_hold

SDCI_REVISION = "35636da44cdc7cef8916b122a12e4aa9e2df80c1"
TEMPLATE = Path(__file__).with_name("study.toml.tmpl")

_PRESETS = {
    "clip": ("CLIPScore + 2 * CLIP-IQA, as the paper has it for LCM and PCM", "hpsv2.1"),
    "hps": ("AQ-Map + 2 * HPSv2.1, as the paper has it for SDXL-Turbo and FLUX.1", "clipscore"),
}


@dataclass(frozen=True)
class _Plan:
    """What suits a model: steps, preset, sizes for one GPU with 48 GB."""

    steps: int
    preset: str
    batch_size: int
    held_out: int = 128
    held_out_seeds: int = 2


_PLANS = {
    "sdxl-turbo": _Plan(4, "hps", 8),
    "lcm-dreamshaper": _Plan(4, "clip", 4),
    "pcm-sd15": _Plan(8, "clip", 8),
    "pcm-sdxl": _Plan(4, "clip", 4),
    "flux-schnell": _Plan(4, "hps", 2, held_out=64, held_out_seeds=1),
}


def study_text(
    model: str, *, scheme: str = "w4a8", steps: int | None = None, name: str | None = None
) -> str:
    """The study file of a model: the paper's preset, calibration size and box.

    Raises ConfigError for a model without a template, or that was not distilled for `steps`;
    QuantizationError for a scheme that does not exist.
    """
    if model not in _PLANS:
        raise ConfigError(f"no template for {model!r}; expected one of {', '.join(_PLANS)}")
    plan, entry = _PLANS[model], MODELS[model]
    steps = steps or plan.steps
    with_entry(Model(name=model), steps)
    backend = backend_named(backend_to_hold(scheme))
    name = name or study_name(model, scheme, steps)
    says, unseen = _PRESETS[plan.preset]
    values = {
        "title": entry.description.partition(",")[0],
        "scheme": scheme,
        "file": f"{name}.toml",
        "needs": f"needs a GPU with about {entry.gpu_gb:.0f} GB and a download of "
        f"{entry.download_gb:.1f} GB",
        "name": name,
        "model": model,
        "name_space": " " * max(1, 23 - len(model)),
        "source": f"{entry.source}; {entry.licence}",
        "steps": steps,
        "steps_allowed": f"{', '.join(map(str, entry.steps or ()))} steps",
        "guidance": entry.guidance_scale,
        "backend": backend.name,
        "backend_space": " " * max(1, 20 - len(backend.name)),
        "backend_says": backend.description,
        "preset": plan.preset,
        "preset_space": " " * max(1, 21 - len(plan.preset)),
        "preset_says": says,
        "prompts_revision": SDCI_REVISION,
        "calibration": 20,
        "held_out": plan.held_out,
        "held_out_seeds": plan.held_out_seeds,
        "metrics": f'"pixels", "{unseen}", "pyiqa:topiq_nr"',
        "batch_size": plan.batch_size,
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def study_name(model: str, scheme: str, steps: int) -> str:
    """The name of a model's study, such as sdxl-turbo-w4a8 or pcm-sd15-8step-w8a8."""
    short = model.removesuffix("-dreamshaper")
    several = short not in ("sdxl-turbo", "flux-schnell") or steps != _PLANS[model].steps
    return f"{short}-{steps}step-{scheme}" if several else f"{short}-{scheme}"


def studies() -> dict[str, str]:
    """The study files that come with qsched, by file name: each model at three schemes."""
    return {
        f"{study_name(model, scheme, plan.steps)}.toml": study_text(model, scheme=scheme)
        for model, plan in _PLANS.items()
        for scheme in ("w8a8", "w4a8", "nf4")
    }
