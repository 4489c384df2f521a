"""A study file: everything checked at once, nothing implicit left out of the fingerprint."""

from pathlib import Path

import pytest

import fakes
from qsched.catalog import METRICS, MODELS, SCORERS
from qsched.config import Study, differences, load_study
from qsched.errors import ConfigError

ROOT = Path(__file__).parents[1]


def changed(folder: Path, old: str, new: str) -> Path:
    """The small study file with one text replaced."""
    path = fakes.study_file(folder)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_the_shipped_study_is_valid() -> None:
    study = load_study(ROOT / "studies" / "demo.toml")
    assert study.trials >= 40
    assert len(study.calibration) == 32
    assert len({prompt.text for prompt in study.held_out}) >= 64
    assert study.tables.search.parametrisation == "ramp"
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
        ('scheme = "w4a8"', 'scheme = "w3a8"'),
        ("seed = 0", "sead = 0"),
        ('"demo-quality"', '"demo-beauty"'),
        ('held_out = ["g", "h", "i"]', 'held_out = ["a", "h"]'),
        ('metrics = ["pixels"]', 'metrics = ["attributes"]'),
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
        "quantization.scheme = 'w3a8'; expected one of none, ",
        "objective.terms.1.scorer = 'demo-beauty'; expected one of demo-alignment, demo-quality",
        "search.sead is not a known key; did you mean 'seed'?",
        "validation: none is independent of the search",
        "prompts.held_out: 1 captions are calibration prompts too, among them 'a'",
    ):
        assert any(words in line for line in lines), (words, lines)
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps = 4", "steps = 3", "sampling.steps = 3; demo was trained for 1, 2, 4 steps"),
        ('name = "demo"', 'name = "sdxl"', "model.name = 'sdxl'; expected one of demo"),
        ("[search]", "[search]\nbounds = [1.1, 1.4]", "search.bounds"),
        ("[search]", '[search]\nparametrisation = "spline"', "search.parametrisation = 'spline'"),
        ("[model]", "[modell]", "model is missing"),
        ('["g", "h", "i"]', '["g"]', "prompts.held_out: 1 caption; expected at least 2"),
        ('["g", "h", "i"]', '"captions.txt"', "captions.txt: No such file"),
        ("weight = 1.0", "weight = nan", "objective.terms.0.weight"),
        ('"demo-quality"', '"demo-alignment"', "a scorer stands there twice"),
        ("[sampling]", "[sampling]\nsigmas = [1.0, 0.5]", "sigmas has 2 numbers"),
        ("[model]", "[model", "not valid TOML"),
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
        ("[search]", "[search]\nbounds = [0.8, 1.2]", {"search.bounds"}),
        ("[search]", '[search]\nsampler = "random"', {"search.sampler"}),
        ("[search]", '[search]\nparametrisation = "per-step"', {"search.parametrisation"}),
        ("seed = 0", "seed = 1", {"search.seed"}),
        ("[prompts]", "[prompts]\nseed = 7", {"prompts.calibration", "prompts.held_out"}),
        ('"f"]', '"ff"]', {"prompts.calibration"}),
        ('"i"]', '"ii"]', {"prompts.held_out"}),
        ('["pixels"]', '["similarity"]', {"validation.metrics"}),
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


def test_other_budgets_and_names_are_checked(tmp_path: Path) -> None:
    study = fakes.study(tmp_path)
    assert study.changed(trials=9).trials == 9
    assert study.changed(name="other", trials=9).name == "other"
    with pytest.raises(ConfigError, match=r"search\.trials = 0; expected at least 1"):
        study.changed(trials=0)
    with pytest.raises(ConfigError, match="name = 'a/b'"):
        study.changed(name="a/b")


def test_the_code_loads_what_the_catalogue_lists() -> None:
    from qsched import score

    assert score.SCORERS.keys() == SCORERS.keys()
    assert score.METRICS.keys() == METRICS.keys()
    assert all(entry.name == name for name, entry in MODELS.items())
