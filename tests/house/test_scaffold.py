"""The files around the package agree with each other."""

import ast
import importlib.metadata
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import qsched

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SCRIPTS = [
    "scripts/install",
    "scripts/demo",
    "scripts/test",
    "scripts/check",
    "scripts/docs",
    "scripts/qsched.sh",
    "scripts/collect_images.sh",
    "deploy/slurm_worker.sbatch",
    ".ci/run",
]


def test_version_is_the_one_in_pyproject() -> None:
    assert qsched.__version__ == importlib.metadata.version("qsched") == PROJECT["version"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_be_run(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    subprocess.run(["bash", "-n", path], check=True)


def test_an_unfit_interpreter_is_refused_in_words(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "scripts/install"):
        copy = tmp_path / "a clone" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    result = subprocess.run(
        ["bash", tmp_path / "a clone" / "scripts" / "install"],
        env=os.environ | {"PYTHON": "no such python"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("qsched needs Python 3.11 to 3.14 and found none as no ")
    assert not (tmp_path / "a clone" / ".venv").exists()


def test_a_package_page_has_no_link_that_only_a_clone_can_follow() -> None:
    text = (ROOT / "README.md").read_text()
    assert "](docs/" in text
    hook = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert all(link.startswith("https://") for link in re.findall(r"\]\((.*?)\)", text))
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert pictures
    assert all(link.startswith("https://raw.githubusercontent.com/") for link in pictures)


def test_workflows_and_hooks_call_what_there_is() -> None:
    called = set()
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
        commands = [step.get("run", "") for job in jobs for step in job.get("steps", [])]
        called |= set(re.findall(r"scripts/\w+", " ".join(commands)))
    assert called == {"scripts/test", "scripts/docs"}
    assert called <= set(SCRIPTS)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    checks = (ROOT / "scripts" / "check").read_text()
    for hook in hooks:
        tool = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert tool in checks


def test_compose_starts_a_database_with_a_volume_and_a_health_check() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    assert services["database"]["volumes"]
    assert "pg_isready" in services["database"]["healthcheck"]["test"][1]
    assert "?" in services["database"]["environment"]["POSTGRES_PASSWORD"]  # none by default
    assert "qsched dashboard" in services["dashboard"]["command"][-1]


def test_compose_builds_its_dashboard_from_the_files_of_the_package() -> None:
    """Not from all that lies beside them, such as an environment of some gigabytes."""
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    words = shlex.split(services["dashboard"]["command"][-1])
    copied = [word.removeprefix("/source/") for word in words if word.startswith("/source/")]
    assert sorted(copied) == sorted(
        ["qsched", "pyproject.toml", "README.md", *PROJECT["license-files"]]
    )


def test_env_yml_asks_for_what_pyproject_allows() -> None:
    env = yaml.safe_load((ROOT / "env.yml").read_text())
    (python,) = (entry for entry in env["dependencies"] if str(entry).startswith("python="))
    (pip,) = (entry["pip"] for entry in env["dependencies"] if isinstance(entry, dict))
    pinned = [Requirement(entry) for entry in pip if not entry.startswith("-e .")]
    extras = PROJECT["optional-dependencies"]
    declared = [
        *PROJECT["dependencies"],
        *(entry for listed in extras.values() for entry in listed),
    ]
    ranges = {requirement.name: requirement.specifier for requirement in map(Requirement, declared)}
    assert "-e .[gpu,metrics,nevergrad,postgres,dashboard]" in pip
    assert Requirement("python" + PROJECT["requires-python"]).specifier.contains(
        python.removeprefix("python=")
    )
    assert [requirement.name for requirement in pinned] == ["torch", "torchao"]
    for requirement in pinned:
        version = str(requirement.specifier).removeprefix("==").replace("*", "0")
        assert ranges[requirement.name].contains(version)


def test_public_names_are_not_hidden_by_modules() -> None:
    """Python sets `qsched.x` to the module qsched/x.py once anything imports it."""
    modules = {path.stem for path in (ROOT / "qsched").iterdir()}
    assert not modules & set(qsched.__all__)


def test_every_dependency_is_imported_somewhere() -> None:
    used = {
        name.partition(".")[0]
        for folder in ("qsched", "training", "tests", "bench")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in names_of(node)
    }
    modules = {
        "open_clip_torch": "open_clip",
        "pyyaml": "yaml",
        "pillow": "PIL",
    }
    needed_by_others = {
        "torchvision",  # open_clip and transformers
        "accelerate",  # diffusers
        "greenlet",  # optuna
        "transformers",  # diffusers: the text encoders of its pipelines
    }
    declared = {Requirement(entry).name for entry in PROJECT["dependencies"]} - needed_by_others
    assert not {name for name in declared if modules.get(name, name) not in used}


def names_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
