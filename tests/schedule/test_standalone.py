"""An exported scheduler in plain diffusers: the pixels of `precondition`, without qsched."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, LCMScheduler
from diffusers.utils import dynamic_modules_utils
from torch import Tensor

from qsched.pipelines.loading import load_pipeline
from qsched.schedule.coefficients import Coefficients
from qsched.schedule.preconditioning import coefficients_of, precondition
from qsched.schedule.standalone import module_name, source
from tests.support.loops import SCALED, SCHEDULERS, loop
from tests.support.outcomes import export
from tests.support.twin_pipelines import Case, twin

ROOT = Path(__file__).parents[2]
EARLIER = Path(__file__).parent / "exported-0.1"
"""What qsched 0.1 exported: of the demo, and of an LCM scheduler with an average."""
PLAIN = ROOT / "tests" / "support" / "plain_diffusers.py"
SCALARS = SCALED.scalars
PROMPTS, SEEDS = ["a red owl"], [3]
MODELS: dict[str, Callable[[], Case]] = {
    "demo, DPM-Solver": lambda: demo(),
    "LCM": lambda: twin("lcm-dreamshaper", steps=4),
    "SDXL, Euler ancestral": lambda: twin("sdxl-turbo", steps=4),
    "FLUX, flow matching": lambda: twin("flux-schnell", steps=4),
    "PCM, TCD": lambda: twin("pcm-sd15", steps=4, call={"eta": 0.3}),
}
KINDS = {"scalars": SCALARS, "average": SCALED}

Sampled = dict[tuple[str, str], dict[str, Tensor]]
"""Images by (model, kind of coefficients), then by who made them."""


def demo() -> Case:
    """The shipped model itself, with its own scheduler."""
    from qsched.pipelines.table import Sampling, sampling_of

    return load_pipeline("demo"), sampling_of("demo", Sampling(steps=4))


def write(folder: Path, stock: Any, coefficients: Coefficients) -> Path:
    """An export of `stock` with coefficients; the scheduler's folder."""
    steps = Coefficients.identity(coefficients.steps)
    export(folder, coefficients, precondition(stock, steps).to_json_string(), {"study": "x"})
    return folder / "scheduler"


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    base = tmp_path_factory.mktemp("without qsched")
    jobs: list[dict[str, Any]] = []
    images: Sampled = {}
    for index, (model, make) in enumerate(MODELS.items()):
        pipeline, sampling = make()
        pipeline.save_pretrained(base / f"model {index}")
        missing = [name for name, part in pipeline.components.items() if part is None]
        # Loaded as the other process does, since the last bits depend on where weights lie.
        pipeline = DiffusionPipeline.from_pretrained(
            base / f"model {index}", **dict.fromkeys(missing)
        )
        stock = pipeline.scheduler
        arguments = {"prompt": PROMPTS, **sampling.arguments()}

        def sample(
            scheduler: Any, pipeline: Any = pipeline, arguments: dict[str, Any] = arguments
        ) -> Tensor:
            pipeline.scheduler = scheduler
            noise = [torch.Generator().manual_seed(seed) for seed in SEEDS]
            made: Tensor = pipeline(generator=noise, output_type="pt", **arguments).images
            return made

        plain = sample(stock)
        for kind, coefficients in KINDS.items():
            out = base / f"export {index} {kind}"
            write(out, stock, coefficients)
            made = sample(precondition(stock, coefficients))
            images[model, kind] = {"stock": plain, "qsched": made}
            jobs.append(
                {
                    "pipeline": str(base / f"model {index}"),
                    "missing": dict.fromkeys(missing),
                    "stock": type(stock).__name__,
                    "model": list(coefficients.model),
                    "out": str(out),
                    "seeds": SEEDS,
                    "arguments": arguments,
                }
            )
    (base / "jobs.json").write_text(json.dumps(jobs))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for route in ("automodel", "folder"):
        done = subprocess.run(
            [sys.executable, "-I", PLAIN, route, base / "jobs.json"],
            env=environment | {"HF_MODULES_CACHE": str(base / route), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    for by_maker, job in zip(images.values(), jobs, strict=True):
        for route in ("automodel", "folder", "trap"):
            by_maker[route] = torch.load(Path(job["out"]) / f"{route}.pt")
    return images


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
def test_both_routes_give_the_same_pixels(sampled: Sampled, model: str, kind: str) -> None:
    images = sampled[model, kind]
    assert torch.equal(images["automodel"], images["qsched"])
    assert torch.equal(images["folder"], images["qsched"])
    assert not torch.equal(images["qsched"], images["stock"])


@pytest.mark.parametrize("model", MODELS)
def test_the_stock_class_drops_the_coefficients(sampled: Sampled, model: str) -> None:
    """The trap that the README warns of: no error, and a config that still shows them."""
    images = sampled[model, "scalars"]
    assert torch.equal(images["trap"], images["stock"])


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where diffusers keeps the modules that it loads."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path / "modules"


def loaded(folder: Path) -> Any:
    return AutoModel.from_pretrained(str(folder), trust_remote_code=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_steps_alike_beside_qsched(
    name: str, kind: str, tmp_path: Path, modules: Path
) -> None:
    stock, coefficients = SCHEDULERS[name][0](), KINDS[kind]
    found = loaded(write(tmp_path, stock, coefficients))
    assert type(found).__module__ == module_name(type(stock).__name__)
    assert torch.equal(loop(found, name), loop(precondition(stock, coefficients), name))


def test_qsched_knows_an_exported_scheduler(tmp_path: Path, modules: Path) -> None:
    found = loaded(write(tmp_path / "one", LCMScheduler(), SCALED))
    assert coefficients_of(found) == SCALED
    again = precondition(found, SCALARS)
    assert coefficients_of(again) == SCALARS
    assert "_calibration" not in again.config
    assert torch.equal(loop(again, "LCM"), loop(precondition(LCMScheduler(), SCALARS), "LCM"))


def test_the_right_scheduler_shows_its_coefficients(tmp_path: Path, modules: Path) -> None:
    """By which the README tells it from a stock one that dropped them."""
    exported = loaded(write(tmp_path / "one", LCMScheduler(), SCALED)).coefficients
    assert exported == (SCALED.model, SCALED.sample, SCALED.average)
    assert (exported.model, exported.average) == (SCALED.model, SCALED.average)
    assert precondition(LCMScheduler(), SCALED).coefficients == SCALED
    assert not hasattr(LCMScheduler(), "coefficients")


def test_it_saves_itself_and_steps_as_before(tmp_path: Path, modules: Path) -> None:
    first = write(tmp_path / "one", FlowMatchEulerDiscreteScheduler(shift=1.5), SCALED)
    loaded(first).save_pretrained(tmp_path / "two")
    for path in first.iterdir():
        mine, other = path.read_text(), (tmp_path / "two" / path.name).read_text()
        if path.suffix == ".json":
            assert json.loads(mine) == json.loads(other)
        else:
            assert mine == other
    expected = loop(loaded(first), "FlowMatchEuler")
    assert torch.equal(loop(loaded(tmp_path / "two"), "FlowMatchEuler"), expected)


def test_what_is_wrong_is_a_value_error_in_words(tmp_path: Path, modules: Path) -> None:
    found = loaded(write(tmp_path, LCMScheduler(), SCALARS))
    with pytest.raises(ValueError, match="are for 4 steps, the schedule has 2; sample with 4"):
        found.set_timesteps(2)
    found.set_timesteps(4)
    x = torch.ones(1, 4, 2, 2)
    with pytest.raises(ValueError, match="timestep 5; expected one that the schedule has once"):
        found.step(x, 5, x)


def sampled_by(scheduler: Any) -> Tensor:
    """Four steps with a network that is a sine."""
    scheduler.set_timesteps(4)
    noise = torch.Generator().manual_seed(2)
    given = {"generator": noise} if "generator" in signature(scheduler.step).parameters else {}
    x = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    for t in scheduler.timesteps:
        x = scheduler.step(x.sin(), t, x, **given).prev_sample
    return x


@pytest.mark.parametrize("name", ["demo", "average"])
def test_what_version_0_1_exported_loads_and_steps_as_ours(
    name: str, tmp_path: Path, modules: Path
) -> None:
    coefficients = Coefficients.load(EARLIER / name / "coefficients.json")
    found = loaded(EARLIER / name / "scheduler")
    assert coefficients_of(found) == coefficients
    stock = found.stock.from_config(found.config)
    ours = precondition(stock, coefficients)
    assert torch.equal(sampled_by(found), sampled_by(ours))
    assert not torch.equal(sampled_by(found), sampled_by(stock))
    assert torch.equal(sampled_by(precondition(found, coefficients)), sampled_by(ours))
    now = write(tmp_path, stock, coefficients)
    assert sorted(path.name for path in now.iterdir()) == sorted(
        path.name for path in (EARLIER / name / "scheduler").iterdir()
    )
    before = json.loads((EARLIER / name / "scheduler" / "scheduler_config.json").read_text())
    del before["_calibration"]
    assert before.items() <= json.loads((now / "scheduler_config.json").read_text()).items()


class OwnScheduler(LCMScheduler):
    """A stock scheduler that is not one of diffusers."""


def test_a_class_of_another_package_is_imported_from_there(tmp_path: Path, modules: Path) -> None:
    found = loaded(write(tmp_path, OwnScheduler(), SCALARS))
    assert isinstance(found, OwnScheduler)
    assert "_stock_module" not in found.config
    assert torch.equal(loop(found, "LCM"), loop(precondition(LCMScheduler(), SCALARS), "LCM"))


@pytest.mark.parametrize(
    "name", sorted({type(make()).__name__ for make, *_ in SCHEDULERS.values()})
)
def test_the_file_is_short_clean_and_alone(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{module_name(name)}.py"
    path.write_text(source(name), encoding="utf-8")
    assert len(source(name).splitlines()) < 310
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(source(name)))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    outside = {str(module).partition(".")[0] for module in imported} - sys.stdlib_module_names
    assert outside == {"diffusers", "torch"}
    assert "Apache License" in source(name).splitlines()[0]
    settings = ["--no-cache", "--config", str(ROOT / "pyproject.toml")]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *settings, path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def test_every_class_has_a_file_of_its_own() -> None:
    names = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    assert len({module_name(name) for name in names}) == len(names)
    assert module_name("DPMSolverMultistepScheduler") == "preconditioned_dpm_solver_multistep"
