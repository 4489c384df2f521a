"""What a study file leaves out of its model and its sampling, filled in from the catalog."""

from pathlib import Path
from typing import Any

from qsched.errors import ConfigError
from qsched.pipelines import catalog
from qsched.study.sections import DEMO_REFERENCE, LoraTable, Model, Sampling, Validation


def with_entry(model: Model, steps: int) -> Model:
    """`model` with what it leaves out filled in from its entry in the catalog.

    The place of a model that ships with qsched is left open, since it differs between machines.
    Raises ConfigError if the checkpoint was distilled for other numbers of steps.
    """
    entry = catalog.model_entry(model.name)
    allowed = _first(model.steps, entry.steps)
    if allowed and steps not in allowed:
        raise ConfigError(
            f"sampling.steps = {steps}; {model.name} was trained for "
            f"{', '.join(map(str, allowed))} steps; take one of these, or set model.steps"
        )
    lora = model.lora
    if lora is None and entry.lora is not None:
        lora = LoraTable(
            source=entry.lora.source,
            file=entry.lora.file,
            revision=entry.lora.revision,
            scale=entry.lora.scale,
        )
    if lora is not None:
        lora = lora.model_copy(update={"file": lora.file.replace("{steps}", str(steps))})
    on_disk = model.source is None and catalog.is_folder(entry.source)
    return model.model_copy(
        update={
            "source": model.source or (None if on_disk else entry.source),
            "revision": model.revision or (None if model.source else entry.revision),
            "variant": model.variant or (None if model.source else entry.variant),
            "pipeline": _first(
                model.pipeline, entry.pipeline, catalog.class_in(model.source or "")
            ),
            "dtype": _first(model.dtype, entry.dtype),
            "part": _first(model.part, entry.part),
            "steps": allowed,
            "scheduler": _first(model.scheduler, entry.scheduler),
            "lora": lora,
        }
    )


def named(name: str, steps: int, dtype: str | None = None) -> Model:
    """The complete table of a model by its name alone. Raises ModelError for one that isn't known,
    ConfigError for steps that it wasn't distilled for."""
    catalog.model_entry(name)
    return with_entry(Model.model_validate({"name": name, "dtype": dtype}), steps)


def placed(model: Model, folder: Path) -> Model:
    """`model` with its local folders found from `folder`, where the study file is."""

    def local(source: str) -> str:
        path = folder / Path(source).expanduser()
        return str(path.resolve()) if path.is_dir() else source

    changes: dict[str, Any] = {}
    if model.source is not None:
        changes["source"] = local(model.source)
    elif model.name not in catalog.MODELS and ":" not in model.name:
        changes["source"] = local(model.name)
    if model.lora is not None:
        changes["lora"] = model.lora.model_copy(update={"source": local(model.lora.source)})
    return model.model_copy(update=changes)


def with_reference(validation: Validation, folder: Path) -> Validation:
    """`validation` with its real images found from `folder`, where the study file is. Raises
    ConfigError if there is no such folder."""
    if validation.reference in (None, DEMO_REFERENCE):
        return validation
    path = (folder / Path(str(validation.reference)).expanduser()).resolve()
    if not path.is_dir():
        raise ConfigError(
            f"validation.reference = {validation.reference!r}; expected a folder of real images "
            f"(there is none at {path}), or {DEMO_REFERENCE!r} for the demo's scenes"
        )
    return validation.model_copy(update={"reference": str(path)})


def source_of(model: Model) -> str:
    """Where the pipeline is: a folder, a hub repository or ``module:function``."""
    return model.source or catalog.model_entry(model.name).source


def weights_of(model: Model) -> str:
    """What tells this model's weights from others."""
    table = model.lora
    lora = catalog.Lora(table.source, table.file, table.revision, table.scale) if table else None
    return catalog.weights_identity(source_of(model), model.revision, lora)


def sampling_of(name: str, sampling: Sampling) -> Sampling:
    """`sampling` with what it leaves out filled in from the entry of the model `name`."""
    entry = catalog.model_entry(name)
    return sampling.model_copy(
        update={
            "guidance_scale": _first(sampling.guidance_scale, entry.guidance_scale),
            "height": _first(sampling.height, entry.height),
            "width": _first(sampling.width, entry.width),
            "call": {**entry.call, **sampling.call},
        }
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
