"""What import-linter's contract does not say: torch, names, the size of a room."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import qsched

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "qsched"
TORCH_STACK = {
    *("torch", "torchvision", "diffusers", "transformers", "accelerate", "open_clip"),
    *("torchao", "bitsandbytes", "peft", "pyiqa"),
}
LIGHT_ROOMS = ("search", "study", "pictures", "report", "cli")
"""Checking, watching, reporting and exporting need no GPU stack: nothing here may load torch."""
LIGHT_MODULES = (
    *(
        "api",
        "captions",
        "errors",
        "hub",
        "libraries",
        "notebooks",
        "prompts",
        "seeds",
        "statistics",
        "tables",
    ),
    *("schedule.coefficients", "schedule.parametrisations", "schedule.standalone"),
    *("quantization.account", "quantization.backend", "quantization.schemes", "quantization.table"),
    *("quantization.simulated", "quantization.torchao", "quantization.bitsandbytes"),
    *("pipelines.catalog", "pipelines.effective", "pipelines.folders", "signatures"),
    *("evidence.impression", "pipelines.table", "scoring.catalog", "scoring.jaq", "scoring.table"),
    *("evidence.guards", "evidence.table", "demo.captions"),
    *("service.database", "service.schema", "service.queue", "service.status", "service.storage"),
    *("service.launchers", "service.stored_study", "service.trials", "service.worker"),
    *("proof.controls", "proof.outcome", "proof.verdict", "testing.launchers"),
)
FILES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}
ROOMS = [folder.name for folder in sorted(PACKAGE.iterdir()) if (folder / "__init__.py").exists()]
LIGHT = [
    *LIGHT_MODULES,
    *(name for name in FILES if name.partition(".")[0] in LIGHT_ROOMS),
]


def imports(statements: Iterable[ast.AST]) -> Iterator[str]:
    """Full dotted names that these statements import; of `from a import b` both `a` and `a.b`."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.module, "relative import"
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def test_names_say_something() -> None:
    assert not {"utils", "util", "helpers", "common", "misc"} & {
        part for name in FILES for part in name.split(".")
    }


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_and_where_to_begin(room: str) -> None:
    said = " ".join((ast.get_docstring(ast.parse(FILES[room].read_text())) or "").split())
    assert said
    assert room == "demo" or "Begin with `" in said
    first = said.rpartition("Begin with `")[2].partition("`")[0]
    assert room == "demo" or f"{room}.{first}" in FILES


def test_a_folder_holds_what_one_can_take_in() -> None:
    for folder in {file.parent for file in FILES.values()}:
        assert len(list(folder.glob("*.py"))) <= 16, folder


@pytest.mark.parametrize("module", FILES)
def test_no_names_from_the_root_package(module: str) -> None:
    public = {f"qsched.{name}" for name in qsched.__all__} - {"qsched.__version__"}
    modules = {f"qsched.{name}" for name in FILES}
    names = set(imports(ast.walk(ast.parse(FILES[module].read_text()))))
    assert not names & (public - modules), "import it from the module it lives in"


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
        "from qsched.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        f"print(sorted({TORCH_STACK!r} & sys.modules.keys()), file=sys.stderr)"
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1] == "[]"
    assert "Usage" in result.stdout
