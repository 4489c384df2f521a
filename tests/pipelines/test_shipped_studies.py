"""The studies that come with qsched: valid, as `qsched init` writes them, and run on tiny twins."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from qsched import api
from qsched.errors import ConfigError, QuantizationError
from qsched.pipelines.catalog import MODELS
from qsched.pipelines.generator import ImageGenerator
from qsched.pipelines.loading import load_model
from qsched.pipelines.table import sampling_of
from qsched.schedule.preconditioning import coefficients_of, preconditioned_class
from qsched.service.storage import Storage
from qsched.study import template
from qsched.study.study import Study, load_study

STUDIES = Path(__file__).parents[2] / "studies"
FILES = sorted(path.name for path in STUDIES.glob("*.toml") if path.name != "demo.toml")

SCHEMES = ("w8a8", "w4a8", "nf4")


def test_the_files_are_those_that_init_writes() -> None:
    written = template.studies()
    assert sorted(written) == FILES
    for name, text in written.items():
        assert (STUDIES / name).read_text(encoding="utf-8") == text, (
            f"{name} is not what qsched.study.template.studies() writes"
        )


def test_each_few_step_model_has_one_at_each_scheme() -> None:
    seen = {
        (tables["model"]["name"], tables["quantization"]["scheme"])
        for tables in (tomllib.loads((STUDIES / name).read_text()) for name in FILES)
    }
    few_step = set(MODELS) - {"demo", "sdxl-base"}
    assert seen == {(model, scheme) for model in few_step for scheme in SCHEMES}


@pytest.mark.parametrize("name", FILES)
def test_it_has_the_papers_preset_and_box(name: str) -> None:
    study = load_study(STUDIES / name, fetch=False)
    assert study.name == name.removesuffix(".toml")
    assert len(study.calibration) == 64
    hints = MODELS[study.tables.model.name].hints
    assert hints
    assert study.tables.objective.preset == hints.preset
    assert [term.weight for term in study.tables.objective.terms] == [1.0, 2.0]
    assert study.tables.search.bounds == (0.8, 1.2)
    cost = api.cost(study)
    assert 796 < cost["images"] <= 800
    assert cost["download_gb"] > MODELS[study.tables.model.name].download_gb


@pytest.fixture
def twin(request: pytest.FixtureRequest) -> Study:
    return load_study(STUDIES / request.param, fetch=False).twin().changed(trials=2)


def one_scheme_of_each_model() -> Iterator[Any]:
    """All studies; slow but for one of each model, whose scheme is another one than the last's."""
    for index, (name, entry) in enumerate(MODELS.items()):
        if entry.hints is None:
            continue
        for number, scheme in enumerate(SCHEMES):
            file = f"{template.study_name(name, scheme, entry.hints.steps)}.toml"
            now = number == index % len(SCHEMES)
            yield pytest.param(file, marks=[] if now else [pytest.mark.slow])


@pytest.mark.parametrize("twin", list(one_scheme_of_each_model()), indirect=True)
def test_its_twin_is_quantized_as_it_says(twin: Study) -> None:
    report = load_model(twin.tables.model, twin.tables.quantization).report
    assert report is not None
    assert report.scheme.name == twin.tables.quantization.scheme
    assert report.share > 0.25


def one_of_each_model() -> Iterator[Any]:
    """A study of each model, the schemes in turn; slow but for one of each kind of network."""
    seen = set()
    for index, (name, entry) in enumerate(MODELS.items()):
        if entry.hints is None:
            continue
        scheme = SCHEMES[index % len(SCHEMES)]
        file = f"{template.study_name(name, scheme, entry.hints.steps)}.toml"
        yield pytest.param(file, marks=[pytest.mark.slow] if entry.part in seen else [])
        seen.add(entry.part)


@pytest.mark.parametrize("twin", list(one_of_each_model()), indirect=True)
def test_its_twin_runs_is_proven_exported_and_loaded_again(twin: Study, tmp_path: Path) -> None:
    """Load, LoRA, quantize, generate, score, two trials, proof, export: then plain diffusers."""
    storage = Storage(f"sqlite:///{tmp_path}/qsched.db")
    outcome = api.run(twin, storage=storage, out=tmp_path / "results")
    assert outcome.finished
    assert outcome.verdict in ("improved", "not_shown", "worse", "suspicious")
    report = json.loads((tmp_path / "results" / "report.json").read_text())
    assert report["fingerprint"]["model.twin"] is True
    assert report["network"].startswith(twin.tables.quantization.scheme)
    assert set(twin.scorers) < set(report["held_out"])

    stored = api.load(storage, twin.name)
    api.take_away(stored, tmp_path / "taken", force=True)
    assert outcome.validation is not None
    best = outcome.validation.candidate
    pipeline: DiffusionPipeline = load_model(twin.tables.model, twin.tables.quantization).pipeline
    prompts = twin.held_out[:2]
    expected = ImageGenerator(pipeline, twin.tables.sampling, batch_size=1).generate(
        prompts, best.coefficients
    )
    scheduler = preconditioned_class(type(pipeline.scheduler))
    pipeline.scheduler = scheduler.from_pretrained(tmp_path / "taken" / "scheduler")
    assert coefficients_of(pipeline.scheduler) == best.coefficients
    drawn = torch.cat(
        [
            pipeline(
                prompt=prompt.text,
                generator=torch.Generator().manual_seed(prompt.seed),
                output_type="pt",
                **twin.tables.sampling.arguments(),
            ).images
            for prompt in prompts
        ]
    )
    if drawn.shape[1] == 4:  # transparency, on white
        drawn = drawn[:, :3] * drawn[:, 3:] + (1 - drawn[:, 3:])
    assert torch.equal(drawn, expected)


def test_init_refuses_what_does_not_exist() -> None:
    with pytest.raises(
        ConfigError, match="no template for 'sdxl-base'; expected one of sdxl-turbo"
    ):
        template.study_text("sdxl-base")
    with pytest.raises(ConfigError, match="steps = 3; pcm-sd15 was trained for 2, 4, 8, 16 steps"):
        template.study_text("pcm-sd15", steps=3)
    with pytest.raises(QuantizationError, match="'q4'; expected none, nf4"):
        template.study_text("pcm-sd15", scheme="q4")


def test_init_writes_other_schemes_and_steps(tmp_path: Path) -> None:
    for scheme, backend in (("w4a4", "simulated"), ("int8", "bitsandbytes"), ("w4", "torchao")):
        text = template.study_text("lcm-dreamshaper", scheme=scheme, steps=2)
        path = tmp_path / f"{scheme}.toml"
        path.write_text(text)
        study = load_study(path, fetch=False)
        assert study.name == f"lcm-2step-{scheme}"
        assert study.tables.quantization.backend == backend
        assert study.tables.sampling.steps == 2
        assert (
            study.tables.sampling.guidance_scale
            == sampling_of("lcm-dreamshaper", study.tables.sampling).guidance_scale
        )
