"""Python code that samples a study's model with its exported scheduler, for a reader to paste."""

import importlib.machinery
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qsched import hub
from qsched.errors import QuantizationError
from qsched.pipelines import catalog
from qsched.pipelines.agreement.kinds import denoisers
from qsched.pipelines.folders import config_at, part_of
from qsched.pipelines.table import LoraTable, Model, layout_of, source_of, twin_of
from qsched.quantization.backend import Snippet
from qsched.quantization.schemes import FIRST_AND_LAST, Scheme
from qsched.quantization.table import Quantization
from qsched.signatures import of_diffusers
from qsched.study.study import Study


def sample_code(study: Study) -> str:
    """Code that is complete by itself, to be run in the exported folder; it writes image.png.

    It loads what the study loaded and quantizes it the same way: in its backend's own code where it
    has some and one scheme covers the network, else by qsched's quantizer.
    """
    tables, prompt = study.tables, study.held_out[0]
    imports = {"import torch", "from diffusers import AutoModel"}
    body = _loading(tables.model, imports, study.folder)
    device = 'device = "cuda" if torch.cuda.is_available() else "cpu"'
    with study.code():
        quantizing, late = _quantizing(tables.model, tables.quantization, imports)
    if tables.model.attention or any("denoiser" in line for line in quantizing):
        body += _denoiser(tables.model)
    body += ["pipeline.to(device)", *quantizing] if late else [*quantizing, "pipeline.to(device)"]
    if tables.model.vae_tiling:
        body.append("pipeline.vae.enable_tiling()")
    if tables.model.attention:
        body.append(
            f"{_network(tables.model)}.set_attention_backend({_quoted(tables.model.attention)})"
        )
    arguments = {"prompt": _quoted(prompt.text)}
    arguments |= {"generator": f'torch.Generator("cpu").manual_seed({prompt.seed})'}
    arguments |= {key: _literal(value) for key, value in tables.sampling.arguments().items()}
    body += [
        'pipeline.scheduler = AutoModel.from_pretrained("./scheduler", trust_remote_code=True)',
        "",
        f"image = {_call('pipeline', [], arguments)}.images[0]",
        'image.save("image.png")',
    ]
    return "\n".join([in_order(imports), "", device, *body])


def _loading(model: Model, imports: set[str], folder: str | None) -> list[str]:
    """`folder`: of the study file, where modules may lie."""
    source = source_of(model)
    if catalog.is_function(source) and not model.twin:
        imports.add("from importlib import import_module")
        module, _, function = source.partition(":")
        path = []
        if folder and importlib.machinery.PathFinder.find_spec(module.partition(".")[0], [folder]):
            imports.add("import sys")
            path = [f"sys.path.insert(0, {_quoted(folder)})"]
        build = f"import_module({_quoted(module)}).{function}"
        return [*path, f"pipeline = {build}()", *_lora(model)]
    kind = model.pipeline or "DiffusionPipeline"
    imports.add(f"from diffusers import {kind}")
    dtype = {"dtype": f"torch.{model.dtype or 'float32'}"}
    if catalog.is_checkpoint(source) and not model.twin:
        load = _call(f"{kind}.from_single_file", ["file"], {"config": "config"} | dtype)
        lines = [f"file = {_file(source, model.revision, imports)}"]
        lines += [f"config = {_layout(model, imports)}"]
    else:
        place, arguments = _source(model, kind, imports)
        load, lines = _call(f"{kind}.from_pretrained", [place], arguments | dtype), []
    return [*lines, f"pipeline = {load}", *_weights(model, imports), *_lora(model)]


def _source(model: Model, kind: str, imports: set[str]) -> tuple[str, dict[str, str]]:
    """The place of a diffusers folder and the loader's other arguments, as expressions."""
    source = source_of(model)
    if model.twin:
        imports.add("from qsched.pipelines.twins import pipeline_twin")
        return f'pipeline_twin("{twin_of(model) or kind}") / "pipeline"', {}
    arguments = {
        key: _quoted(value)
        for key, value in (("revision", model.revision), ("variant", model.variant))
        if value
    }
    arguments |= dict.fromkeys(_missing(source), "None")
    if model.source is None and catalog.is_folder(source):
        imports.add("from qsched.pipelines.catalog import MODELS")  # it ships with qsched
        return f"MODELS[{_quoted(model.name)}].source", arguments
    return _quoted(source), arguments


def _file(source: str, revision: str | None, imports: set[str]) -> str:
    """The place of a single file, here or on the hub."""
    remote = catalog.file_in_repository(source)
    if remote is None:
        return _quoted(source)
    imports.add("from huggingface_hub import hf_hub_download")
    options = {"revision": _quoted(revision)} if revision else {}
    return _call("hf_hub_download", [_quoted(part) for part in remote], options)


def _layout(model: Model, imports: set[str]) -> str:
    """The folder with the configs and tokenizers of a single file."""
    if catalog.is_folder(layout_of(model)) or model.config is None:
        return _quoted(layout_of(model))
    imports.add("from huggingface_hub import snapshot_download")
    entry = catalog.layout_named(model.config)
    options = {"revision": _quoted(entry.revision)} if entry.revision else {}
    options["allow_patterns"] = _literal(list(hub.LAYOUT))
    return _call("snapshot_download", [_quoted(entry.source)], options)


def _weights(model: Model, imports: set[str]) -> list[str]:
    """Puts the denoiser's own weights into the pipeline of another model."""
    table = model.weights
    if table is None:
        return []
    if model.twin:
        imports.add("from qsched.pipelines.weights import twin_weights")
        place = f'twin_weights("{model.pipeline}") / "twin{Path(table.file).suffix}"'
    elif Path(table.source).is_dir():
        place = _quoted(str(Path(table.source) / table.file))
    else:
        place = _file(f"{table.source}/{table.file}", table.revision, imports)
    tensors = 'torch.load(weights, map_location="cpu", weights_only=True)'
    if table.file.endswith(".safetensors"):
        imports.add("from safetensors.torch import load_file")
        tensors = "load_file(weights)"
    return [f"weights = {place}", f"{_network(model)}.load_state_dict({tensors})"]


def _missing(source: str) -> list[str]:
    """Text encoders that a folder does without, which diffusers wants to be told."""
    if not catalog.is_folder(source):
        return []
    index = _index(source)
    absent = [name for name, value in index.items() if value == [None, None]]
    return [name for name in absent if name.startswith(("text_encoder", "tokenizer"))]


def _lora(model: Model) -> list[str]:
    return [line for lora in model.loras for line in _fused(model, lora)]


def _fused(model: Model, lora: LoraTable) -> list[str]:
    place, file, options = _quoted(lora.source), lora.file, {}
    if model.twin:
        place = f'pipeline_twin("{twin_of(model)}", lora=True) / "lora"'
        file = "twin.safetensors"
    elif lora.revision:
        options = {"revision": _quoted(lora.revision)}
    arguments = {"weight_name": _quoted(file), **options}
    return [
        _call("pipeline.load_lora_weights", [place], arguments),
        f"pipeline.fuse_lora(lora_scale={lora.scale})",
        "pipeline.unload_lora_weights()",
    ]


def _index(folder: str) -> dict[str, Any]:
    """Raises ModelError for one that can't be read."""
    return config_at(Path(folder) / "model_index.json")


def _network(model: Model) -> str:
    """The denoiser, as an expression. Without `part` the folder tells, or the pipeline itself."""
    source = layout_of(model)
    part: str | None = model.part
    if part is None and catalog.is_folder(source) and not model.twin:
        part = part_of(_index(source))
    kind = of_diffusers(model.pipeline) if part is None and model.pipeline else None
    part = part or next(iter(denoisers(kind)) if kind else iter(()), None)
    return f"pipeline.{part}" if part else "denoiser"


def _denoiser(model: Model) -> list[str]:
    """Finds the denoiser where only the pipeline itself tells its name."""
    if _network(model) != "denoiser":
        return []
    names = " or ".join(f'getattr(pipeline, "{name}", None)' for name in catalog.PARTS)
    return [f"denoiser = {names}"]


def _quantizing(model: Model, table: Quantization, imports: set[str]) -> tuple[list[str], bool]:
    """The code, and whether it comes after the pipeline is on its device."""
    network, lines = _network(model), []
    if model.text_encoders is not None:
        imports.add("from qsched.quantization.quantize import quantize")
        lines = [
            "for name, encoder in pipeline.components.items():",
            '    if name.startswith("text_encoder") and encoder is not None:',
            f"        quantize(encoder, {_quoted(model.text_encoders)})",
        ]
    if table.scheme == "none" and not table.overrides:
        return lines, True
    snippet = None if table.overrides else _snippet(network, table)
    if snippet is None:
        imports.add("from qsched.quantization.quantize import quantize")
        options = {
            key: _literal(list(value) if isinstance(value, tuple) else value)
            for key, value in table.model_dump(exclude={"scheme"}).items()
            if value is not None and value != {}
        }
        return [_call("quantize", [network, _quoted(table.scheme)], options), *lines], True
    imports.update(snippet.imports)
    wanted = _wanted(model, table, snippet.rules, imports)
    return [*wanted, *snippet.lines, *lines], snippet.on_device


def _snippet(network: str, table: Quantization) -> Snippet | None:
    """The backend's own code; None where it has none, or isn't here."""
    try:
        backend, group = table.resolved()
        return backend.snippet(network, Scheme.parse(table.scheme, backend.name), group)
    except QuantizationError:
        return None


def _wanted(
    model: Model, table: Quantization, rules: Iterable[str], imports: set[str]
) -> list[str]:
    """A function that says which layers are quantized."""
    tests = [*rules]
    spared = table.skip
    if spared is None:
        known = catalog.PIPELINES.get(model.pipeline or "")
        spared = FIRST_AND_LAST if known is None else known.linear_ends
    if any(set("*?[") & set(pattern) for pattern in spared):
        imports.add("from fnmatch import fnmatchcase")
        patterns = _literal(list(spared))
        tests.append(f"not any(fnmatchcase(name, pattern) for pattern in {patterns})")
    elif spared:
        tests.append(f"name not in {_literal(list(spared))}")
    return ["", "def wanted(layer, name):", f"    return {' and '.join(tests)}", ""]


def _call(function: str, positional: list[str], named: Mapping[str, str]) -> str:
    """One argument a line."""
    arguments = [*positional, *(f"{key}={value}" for key, value in named.items())]
    single = f"{function}({', '.join(arguments)})"
    if len(single) <= 80:
        return single
    return "\n".join([f"{function}(", *(f"    {argument}," for argument in arguments), ")"])


def _literal(value: Any) -> str:
    """The value as Python source; what it holds came from TOML."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def in_order(imports: Iterable[str]) -> str:
    """Import statements of one name each: merged, the standard library's first."""
    plain, by_module = set(), defaultdict(set)
    for line in imports:
        if line.startswith("from"):
            _, module, _, name = line.split(" ", 3)
            by_module[module].add(name)
        else:
            plain.add(line.removeprefix("import "))

    def block(standard: bool) -> list[str]:
        def here(module: str) -> bool:
            return (module.partition(".")[0] in sys.stdlib_module_names) == standard

        return [f"import {module}" for module in sorted(filter(here, plain))] + [
            f"from {module} import {', '.join(sorted(by_module[module]))}"
            for module in sorted(filter(here, by_module))
        ]

    return "\n".join([*block(True), "", *block(False)]).strip()
