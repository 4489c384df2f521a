"""Whether the folders and files that a study names are here; a twin needs none."""

from collections.abc import Iterator
from pathlib import Path

from qsched.files.documents import is_file, is_folder
from qsched.pipelines import catalog
from qsched.pipelines.folders import predicts_v
from qsched.pipelines.table import LoraTable, Model, WeightsTable, layout_of, source_of


def problems_of_places(model: Model) -> Iterator[str]:
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
        if catalog.is_function(source):
            yield f"model.weights: {source} builds its pipeline itself; load them there"
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
        elif predicts_v(source) and (model.scheduler or {}).get("prediction_type") is None:
            yield (
                f"{key} = {source!r}: it says that it predicts v, and its config doesn't; set "
                "model.scheduler with prediction_type = 'v_prediction'"
            )
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
