"""A preconditioned scheduler as one file that needs diffusers and no qsched. Loads no torch.

The file is put together from the source of `steps`, and of what `steps` uses of `coefficients` and
`errors`, so what it does is what qsched does.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.resources import files

from qsched import __version__

PREFIX = "Preconditioned"

_HEAD = '''\
# Copyright the qsched authors. Licensed under the Apache License, Version 2.0:
# https://www.apache.org/licenses/LICENSE-2.0
"""`{stock}` with Q-Sched's coefficients (arXiv 2509.01624), without qsched.

    x_{{i+1}} = step(c_eps[i] * eps_i, t_i, c_x[i] * x_i)

    pipeline.scheduler = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)

FOLDER holds this file, scheduler_config.json with the coefficients, and config.json, which leads
diffusers here. The stock class's own `from_pretrained(FOLDER)` loads a scheduler without them.
Written by qsched {version}.
"""

{imports}

_SOURCE = Path(__file__).read_bytes()


{errors}


@dataclass(frozen=True)
class Coefficients:
    """c_eps (`model`) and c_x (`sample`) of every step; the weights of an x0 average, or ()."""

    model: Sequence[float]
    sample: Sequence[float]
    average: Sequence[float] = ()

{methods}


{steps}


class {name}(Preconditioned, Stock):
    """The stock scheduler with coefficients. Saved alone or in a pipeline, it brings this file."""

    # In a saved pipeline, model_index.json names the file in the scheduler's folder by this.
    __module__ = "{module}"

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes scheduler_config.json, config.json and this file."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        name, module = type(self).__name__, type(self).__module__
        (folder / f"{{module}}.py").write_bytes(_SOURCE)
        config = {{"_class_name": name, "auto_map": {{"AutoModel": f"{{module}}.{{name}}"}}}}
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        super().save_config(save_directory, push_to_hub, **kwargs)
'''

_OWN_IMPORTS = (
    "import json",
    "from collections.abc import Sequence",
    "from dataclasses import dataclass",
    "from pathlib import Path",
)


def module_name(stock: str) -> str:
    """The name of the file for a stock class, without .py; another one for each class.

    diffusers copies all such files into one folder, where equal names would meet.
    """
    words = stock.removesuffix("Scheduler")
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", words)
    return f"preconditioned_{snake.lower()}"


def auto_map(stock: str) -> dict[str, object]:
    """The content of config.json, by which diffusers' AutoModel finds the class in the file."""
    name = PREFIX + stock
    return {"_class_name": name, "auto_map": {"AutoModel": f"{module_name(stock)}.{name}"}}


def source(stock: str, package: str = "diffusers") -> str:
    """The file's content. `stock`: a scheduler class of the module `package`."""
    steps = ast.parse(_text("steps"))
    needed = [node for node in steps.body if isinstance(node, ast.Import | ast.ImportFrom)]
    foreign = [line for node in needed for line in _lines(node) if "qsched" not in line]
    errors = [
        f'class {alias.name}(Exception):\n    """{_docstring("errors", alias.name)}"""'
        for node in needed
        if isinstance(node, ast.ImportFrom) and node.module == "qsched.errors"
        for alias in node.names
    ]
    return _HEAD.format(
        stock=stock,
        name=PREFIX + stock,
        module=module_name(stock),
        version=__version__,
        imports=in_order({*foreign, *_OWN_IMPORTS, f"from {package} import {stock} as Stock"}),
        errors="\n\n\n".join(errors),
        methods="\n\n".join(_methods("coefficients", "Coefficients", ("steps", "require_steps"))),
        steps="".join(_used(steps, _text("steps"))).strip("\n"),
    )


def _text(module: str) -> str:
    place = (
        "errors.py"
        if module == "errors"
        else f"schedule/{module.removesuffix('s') if module == 'steps' else module}.py"
    )
    return (files("qsched") / place).read_text(encoding="utf-8")


def _class(module: str, name: str) -> ast.ClassDef:
    body = ast.parse(_text(module)).body
    return next(node for node in body if isinstance(node, ast.ClassDef) and node.name == name)


def _docstring(module: str, name: str) -> str:
    return ast.get_docstring(_class(module, name)) or name


def _methods(module: str, name: str, wanted: Iterable[str]) -> Iterator[str]:
    """Methods of a class as they are written, decorators included."""
    lines = _text(module).splitlines()
    for node in _class(module, name).body:
        if isinstance(node, ast.FunctionDef) and node.name in wanted:
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            yield "\n".join(lines[first - 1 : node.end_lineno])


def _used(tree: ast.Module, text: str) -> Iterator[str]:
    """What follows the imports, as it is written, without constants that only others use."""
    lines = text.splitlines(keepends=True)
    body = iter(tree.body)
    start, groups = 0, list[tuple[list[ast.stmt], str]]()
    for node in body:
        end = node.end_lineno or node.lineno
        part = "".join(lines[start:end])
        if isinstance(node, ast.Expr) and groups:  # the docstring of a constant
            groups[-1] = (groups[-1][0], groups[-1][1] + part)
        elif not isinstance(node, ast.Import | ast.ImportFrom | ast.Expr):
            groups.append(([node], part))
        start = end
    names = [
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    ]
    for (node,), part in groups:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if not isinstance(target, ast.Name) or target.id in names:
            yield part


def _lines(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [ast.unparse(type(node)(**{**vars(node), "names": [alias]})) for alias in node.names]


def in_order(imports: Iterable[str]) -> str:
    """Import statements of one name each: merged, the standard library's first."""
    plain, named = set(), defaultdict(set)
    for line in imports:
        if line.startswith("from"):
            _, module, _, name = line.split(" ", 3)
            named[module].add(name)
        else:
            plain.add(line.removeprefix("import "))

    def block(standard: bool) -> list[str]:
        def here(module: str) -> bool:
            return (module.partition(".")[0] in sys.stdlib_module_names) == standard

        return [f"import {module}" for module in sorted(filter(here, plain))] + [
            f"from {module} import {', '.join(sorted(named[module]))}"
            for module in sorted(filter(here, named))
        ]

    return "\n".join([*block(True), "", *block(False)]).strip()
