"""The folder that people take away: numbers, scheduler, README, and what the verdict allows."""

import ast
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from qsched import api
from qsched.errors import CoefficientsError, OutputError, StudyError
from qsched.pipelines.generator import ImageGenerator
from qsched.pipelines.loading import load_model
from qsched.pipelines.twins import pipeline_twin
from qsched.plugins import beside
from qsched.proof import outcome
from qsched.proof.outcome import Taken
from qsched.report.card import model_card
from qsched.report.sample_code import sample_code
from qsched.schedule.coefficients import Coefficients
from qsched.schedule.preconditioning import (
    PreconditionedFlowMatchEulerDiscreteScheduler,
    precondition,
)
from qsched.service import stored_study as studies
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.study.study import Study, load_study
from tests.support import fakes
from tests.support.outcomes import RAMP, export, proof

AVERAGED = RAMP.averaged((0.25, 0.25, 0.25, 0.25))
STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stock = FlowMatchEulerDiscreteScheduler(shift=1.5)
    config = precondition(stock, Coefficients.identity(4)).to_json_string()
    export(tmp_path / "out", RAMP, config, {"study": "demo", "verdict": "improved"})
    return tmp_path / "out"


def test_the_scheduler_steps_as_the_coefficients_say(folder: Path) -> None:
    loaded = PreconditionedFlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    expected = precondition(FlowMatchEulerDiscreteScheduler(shift=1.5), RAMP)
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for scheduler in (loaded, expected):
        scheduler.set_timesteps(4)
    for timestep in expected.timesteps:
        steps = [
            scheduler.step(sample.sin(), timestep, sample).prev_sample
            for scheduler in (loaded, expected)
        ]
        assert torch.equal(*steps)
        sample = steps[0]


def test_the_numbers_say_where_they_come_from(folder: Path) -> None:
    assert Coefficients.load(folder / "coefficients.json") == RAMP
    document = json.loads((folder / "coefficients.json").read_text())
    assert document["provenance"] == {"study": "demo", "verdict": "improved"}
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert config["_calibration"] == document["provenance"]


def test_a_changed_file_is_refused(folder: Path) -> None:
    path = folder / "coefficients.json"
    path.write_text(path.read_text().replace('"improved"', '"proven"'))
    with pytest.raises(CoefficientsError, match="changed since it was written"):
        Coefficients.load(path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    config = json.dumps({"_class_name": "PreconditionedLCMScheduler"})
    with pytest.raises(OutputError, match=r"taken.*: cannot be written: .*; give another --out"):
        export(tmp_path / "taken", RAMP, config, {})


@pytest.fixture
def study(tmp_path: Path) -> StoredStudy:
    return studies.create(
        Storage(f"sqlite:///{tmp_path}/storage/qsched.db"), fakes.study(tmp_path / "files")
    )


CASES = {
    "improved": ("improved", False, RAMP, False, "**Verdict: improved.** It is so."),
    "improved, force changes nothing": ("improved", True, RAMP, False, "It is so."),
    "not shown": ("not_shown", False, Coefficients.identity(4), False, "are all 1"),
    "worse": ("worse", False, Coefficients.identity(4), False, "are all 1"),
    "suspicious": ("suspicious", False, Coefficients.identity(4), False, "are all 1"),
    "forced": ("not_shown", True, RAMP, True, "**Not proven.**"),
}


@pytest.mark.parametrize("case", CASES)
def test_only_what_is_proven_or_forced_leaves(
    tmp_path: Path, study: StoredStudy, case: str
) -> None:
    verdict, force, expected, forced, words = CASES[case]
    outcome.keep(study, proof(verdict))
    paths = api.take_away(study, tmp_path / "out", force=force)
    assert sorted(paths) == sorted(p for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert Coefficients.load(paths[0]) == expected
    document = json.loads(paths[0].read_text())
    assert document["provenance"]["forced"] is forced
    assert document["provenance"]["verdict"] == verdict
    config = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert config["model_coefficients"] == list(expected.model)
    run = proof(verdict).run
    assert config["_calibration"] == {
        "run": run,
        "study": "fake",
        "verdict": verdict,
        "forced": forced,
    }
    readme = (tmp_path / "out" / "README.md").read_text()
    assert words in readme
    assert ("**Not proven.**" in readme) == forced
    assert f"run `{run}`" in readme
    assert f"| 1 | {expected.model[0]:.4f} | {expected.sample[0]:.4f} |" in readme


def test_a_proven_result_need_not_be_the_best_of_the_search(
    tmp_path: Path, study: StoredStudy
) -> None:
    outcome.keep(study, proof(best=RAMP, published=AVERAGED))
    for force in (False, True):
        paths = api.take_away(study, tmp_path / "out", force=force)
        assert Coefficients.load(paths[0]) == AVERAGED


def test_nothing_leaves_before_a_verdict(tmp_path: Path, study: StoredStudy) -> None:
    with pytest.raises(StudyError, match="'fake' has no verdict yet; run qsched validate fake"):
        api.take_away(study, tmp_path / "out", force=True)
    assert not (tmp_path / "out").exists()


def code_in(readme: str) -> str:
    (block,) = re.findall(r"```python\n(.*?)\n```", readme, flags=re.DOTALL)
    return str(block)


def test_the_code_in_the_readme_works_as_pasted(tmp_path: Path, study: StoredStudy) -> None:
    """In a process of its own, in the folder; the picture is the one that the search would see."""
    outcome.keep(study, proof(best=AVERAGED))
    api.take_away(study, tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", code_in((tmp_path / "out" / "README.md").read_text())],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert picture(tmp_path / "out").tolist() == scored(study.definition, AVERAGED).tolist()
    plain = scored(study.definition, Coefficients.identity(4))
    assert picture(tmp_path / "out").tolist() != plain.tolist()


def picture(folder: Path) -> np.ndarray:
    return np.asarray(Image.open(folder / "image.png"))


def scored(study: Study, coefficients: Coefficients) -> np.ndarray:
    """The first held-out prompt's image as the study makes it, 8 bits a channel."""
    tables = study.tables
    pipeline = load_model(tables.model, tables.quantization).pipeline
    generator = ImageGenerator(pipeline, tables.sampling, part=tables.model.part, batch_size=1)
    (image,) = generator.generate(study.held_out[:1], coefficients)
    return np.asarray((image.permute(1, 2, 0) * 255).round().byte())


@pytest.mark.parametrize(
    "name",
    [
        "sdxl-turbo-w8a8",
        "flux-schnell-w4a8",
        "pcm-sdxl-4step-w4a8",
        "dmd2-sdxl-4step-w4a8",
        "flux-schnell-nf4",
        "int8",
        "w4",
    ],
)
def test_plain_quantization_is_the_study_s(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchao's and bitsandbytes' own code makes the same picture on a tiny twin."""
    definition = variant(name).twin()
    tables = definition.tables
    code = sample_code(definition)
    assert "qsched.quantization" not in code
    stock = load_model(tables.model).pipeline.scheduler
    coefficients = Coefficients.ramp(tables.sampling.steps, 1.1, 0.9)
    export(tmp_path, coefficients, precondition(stock, coefficients).to_json_string(), {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    exec(compile(code, "README.md", "exec"), {})
    assert picture(tmp_path).tolist() == scored(definition, coefficients).tolist()


def variant(name: str) -> Study:
    """A study of the repository, or FLUX at another scheme."""
    folder = STUDIES[0].parent
    if (folder / f"{name}.toml").is_file():
        return load_study(folder / f"{name}.toml", fetch=False)
    found = load_study(folder / "flux-schnell-w4a8.toml", fetch=False)
    backend = "bitsandbytes" if name == "int8" else "torchao"
    table = found.tables.quantization.model_copy(update={"scheme": name, "backend": backend})
    tables = found.tables.model_copy(update={"quantization": table})
    return replace(found, tables=tables)


OWN = """
import torch
from diffusers import DiffusionPipeline

class Redraw(type(DiffusionPipeline.from_pretrained("{folder}"))):
    def __call__(self, image=None, prompt=None, **arguments):  # as Flux 2 klein has it
        assert image is None
        return super().__call__(prompt=prompt, **arguments)

def build():
    made = DiffusionPipeline.from_pretrained("{folder}")
    return Redraw(**made.components)
"""


@pytest.mark.parametrize("backend", ["torchao", "simulated"])
@pytest.mark.parametrize("source", ["folder", "function"])
@pytest.mark.parametrize("kind", ["StableDiffusionXLPipeline", "FluxPipeline"])
def test_the_code_works_for_models_that_no_catalog_knows(
    kind: str, source: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing says whether the denoiser is a unet or a transformer, or what comes first."""
    place = tmp_path / "own model"
    shutil.copytree(pipeline_twin(kind) / "pipeline", place)
    module = f"own_{kind.lower()}_{backend}"
    (tmp_path / f"{module}.py").write_text(OWN.replace("{folder}", str(place)))
    file = fakes.study_file(tmp_path)
    text = file.read_text().replace(
        '"demo"', f'"{place if source == "folder" else module + ":build"}"'
    )
    text = text.replace("steps = 4", "steps = 4\nguidance_scale = 0.0\nheight = 32\nwidth = 32")
    file.write_text(text.replace('"w4a8"', f'"w8a8"\nbackend = "{backend}"'))
    definition = load_study(file)
    assert definition.tables.model.part is None
    code = sample_code(definition)
    with beside(definition.folder):
        stock = load_model(definition.tables.model).pipeline.scheduler
        coefficients = Coefficients.ramp(4, 1.1, 0.9)
        export(tmp_path, coefficients, precondition(stock, coefficients).to_json_string(), {})
        expected = scored(definition, coefficients)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(compile(code, "README.md", "exec"), {})
    assert picture(tmp_path).tolist() == expected.tolist()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_code_of_every_study_names_what_it_loads(path: Path) -> None:
    definition = load_study(path, fetch=False)
    model, sampling = definition.tables.model, definition.tables.sampling
    code = sample_code(definition)
    compile(code, str(path), "exec")
    strings = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    named = {model.source or model.name, model.revision, model.variant, definition.held_out[0].text}
    for lora in model.loras:
        named |= {lora.source, lora.file, lora.revision}
    if model.weights:
        named |= {model.weights.source, model.weights.file, model.weights.revision}
    assert named - {None} <= strings
    assert f"{model.pipeline}.from_pretrained(" in code
    assert f"dtype=torch.{model.dtype or 'float32'}" in code
    assert f"num_inference_steps={sampling.steps}" in code
    for name, value in sampling.arguments().items():
        assert f"    {name}={value!r},\n" in code
    assert 'AutoModel.from_pretrained("./scheduler", trust_remote_code=True)' in code


def test_the_readme_says_what_it_is_for_and_warns() -> None:
    definition = load_study(STUDIES[0].parent / "pcm-sd15-8step-w4a8.toml", fetch=False)
    best = Coefficients.ramp(8, 1.1, 0.9)
    readme = model_card(definition, proof(best=best), Taken(best, forced=False), "TCDScheduler")
    for words in (
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "wangfuyun/PCM_Weights/sd15/pcm_sd15_smallcfg_8step_converted.safetensors",
        "| steps | 8 |",
        "| guidance | 0.0 |",
        "| dtype | float16 |",
        "For this and nothing else",
        '`TCDScheduler.from_pretrained("./scheduler")` **drops the coefficients silently**',
        "preconditioned_tcd.py",
        "| frechet (lower is better) \\* | 60.000 | 130.000 | 120.000 | −10.00 [−12.00, −8.00] |",
        "| pixels \\* | 3.000 | 1.000 | 1.500 | +0.500 [+0.250, +0.750] |",
        "coefficients.json",
    ):
        assert words in readme
    assert "weight of x0" not in readme
    averaged = best.averaged([0.125] * 8)
    taken = Taken(averaged, forced=False)
    assert "| 8 | 1.0000 | 1.0000 | 0.1250 |" in model_card(
        definition, proof(best=averaged), taken, "TCDScheduler"
    )
