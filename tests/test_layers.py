"""The package's layers: who may import whom, and who may load torch."""

import ast
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import qsched

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "qsched"

# Imports point only upwards: a module may import those that stand above it. CONTRIBUTING.md says
# what each is for. `demo` is the folder of the shipped model.
LAYERS = (
    "errors",
    "hub",
    "coefficients",
    "spaces",
    "jaq",
    "catalog",
    "metrics",
    "phrases",
    "prompts",
    "schemes",
    "sampler_names",
    "account",
    "sections",
    "defaults",
    "config",
    "template",
    "steps",
    "schedule",
    "simulate",
    "backends",
    "quantize",
    "demo",
    "twins",
    "sources",
    "models",
    "interception",
    "generate",
    "images",
    "clip",
    "clip_models",
    "iqa",
    "similarity",
    "judges",
    "score",
    "schema",
    "database",
    "storage",
    "queue",
    "history",
    "nevergrad_sampler",
    "samplers",
    "trials",
    "stopping",
    "status",
    "study",
    "objective",
    "lease",
    "interrupts",
    "worker",
    "verdict",
    "controls",
    "guards",
    "distances",
    "distribution",
    "proof",
    "validation",
    "plots",
    "numerals",
    "standalone",
    "sample_code",
    "card",
    "export",
    "pictures",
    "artifacts",
    "page",
    "report",
    "gallery",
    "pool",
    "api",
    "tables",
    "display",
    "dashboard",
    "doctor",
    "options",
    "manage",
    "cli",
)
MAY_LOAD_TORCH = {
    "steps",
    "schedule",
    "simulate",
    "backends",
    "quantize",
    "twins",
    "sources",
    "models",
    "interception",
    "generate",
    "clip",
    "clip_models",
    "iqa",
    "similarity",
    "judges",
    "score",
    "guards",
    "distances",
    "distribution",
    "proof",
    "validation",
    "demo.critic",
}
RUN_THEM = {"images", "objective", "worker"}  # may import those above, but not torch itself
TORCH_STACK = {
    *("torch", "torchvision", "diffusers", "transformers", "accelerate", "open_clip"),
    *("torchao", "bitsandbytes", "peft", "pyiqa"),
}

FILES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}
MODULES = {name: file for name, file in FILES.items() if not name.startswith("__")}
# Creating, watching, reporting and exporting a study load no torch.
LIGHT = [name for name in MODULES if name not in MAY_LOAD_TORCH | RUN_THEM and "." not in name]


def imports(statements: Iterable[ast.AST]) -> Iterator[str]:
    """Full dotted names that these statements import; of `from a import b` both `a` and `a.b`."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.module, "relative import"
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def own_imports(module: str) -> set[str]:
    """The package's modules that `module` imports, wherever in its code."""
    names = imports(ast.walk(ast.parse(FILES[module].read_text())))
    found = {name.removeprefix("qsched.") for name in names if name.startswith("qsched.")}
    return found & MODULES.keys() - {module}


def layer(module: str) -> int:
    """Its place in the table; everything in qsched/demo counts as `demo`."""
    return LAYERS.index(module.partition(".")[0])


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported: not functions, not `if TYPE_CHECKING`."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            yield from at_import(statement.orelse)
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield statement
        for block in ("body", "orelse", "finalbody"):
            yield from at_import(getattr(statement, block, []))
        for handler in getattr(statement, "handlers", []):
            yield from at_import(handler.body)


@pytest.mark.parametrize("module", MODULES)
def test_module_has_a_place_in_the_table(module: str) -> None:
    assert module.partition(".")[0] in LAYERS


def test_names_say_something() -> None:
    assert not {"utils", "util", "helpers", "common", "misc"} & {
        part for name in MODULES for part in name.split(".")
    }


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_upwards(module: str) -> None:
    downwards = [
        other
        for other in own_imports(module)
        if layer(other) > layer(module) or (layer(other) == layer(module) and "." not in module)
    ]
    assert not downwards, f"{module} imports from below itself in the table: {downwards}"


def test_no_cycles() -> None:
    graph = {module: own_imports(module) for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


@pytest.mark.parametrize("module", MODULES)
def test_no_names_from_the_root_package(module: str) -> None:
    public = {f"qsched.{name}" for name in qsched.__all__} - {"qsched.__version__"}
    modules = {f"qsched.{name}" for name in MODULES}
    names = set(imports(ast.walk(ast.parse(FILES[module].read_text()))))
    assert not names & (public - modules), "import it from the module it lives in"


@pytest.mark.parametrize("module", FILES)
def test_torch_is_imported_only_where_it_is_needed(module: str) -> None:
    names = imports(at_import(ast.parse(FILES[module].read_text()).body))
    heavy = {name for name in names if name.partition(".")[0] in TORCH_STACK}
    assert not heavy or module in MAY_LOAD_TORCH


@pytest.mark.parametrize("module", FILES)
def test_modules_fit_in_the_head(module: str) -> None:
    lines = len(FILES[module].read_text().splitlines())
    assert lines <= 350, f"{module}: {lines} lines"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_light_modules_do_not_load_torch() -> None:
    names = ["qsched", *(f"qsched.{name}" for name in LIGHT)]
    result = run_python(
        "import importlib, json, sys\n"
        "loaded = {}\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded[name] = sorted({TORCH_STACK!r} & sys.modules.keys())\n"
        "print(json.dumps(loaded))"
    )
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout.splitlines()[-1])
    culprit = next((name for name, stack in loaded.items() if stack), None)
    assert culprit is None, f"importing {culprit} loads {loaded[culprit]}"


def test_help_does_not_load_torch() -> None:
    result = run_python(
        "import sys\n"
        "sys.argv = ['qsched', '--help']\n"
        "from qsched.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        f"print(sorted({TORCH_STACK!r} & sys.modules.keys()), file=sys.stderr)"
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1] == "[]"
    assert "Usage" in result.stdout


def test_contributing_shows_the_same_table() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `(\w+)`", text, flags=re.MULTILINE)
    assert rows == [name for name in LAYERS if name in rows], "not in the order of LAYERS"
    missing = {module.partition(".")[0] for module in MODULES} - set(rows)
    assert not missing, f"modules without a row in CONTRIBUTING.md: {missing}"
