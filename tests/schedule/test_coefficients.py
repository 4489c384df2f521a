"""The frozen value, its files, and the parametrisations that a search moves in."""

import dataclasses
import json
import math
import pickle
import random
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from qsched.errors import CoefficientsError, ScoreError
from qsched.schedule.coefficients import Coefficients
from qsched.schedule.parametrisations import (
    DECAY,
    DEFAULT_BOUNDS,
    NAMES,
    Bounds,
    Parametrisation,
    parametrisation,
)

RAGGED = Coefficients((1.1, 0.1 + 0.2, 1 / 3), (math.pi, 5e-324, 1.7976931348623157e308))


def document(**changes: Any) -> str:
    """A valid file with some keys changed; a key set to `...` is left out."""
    keys = {"format": "qsched-coefficients", "version": 1, "steps": 2}
    keys |= {"model": [1.1, 1.0], "sample": [0.9, 1.0]} | changes
    return json.dumps({key: value for key, value in keys.items() if value is not ...})


def test_identity_is_ones() -> None:
    identity = Coefficients.identity(steps=3)
    assert identity == Coefficients((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    assert identity.is_identity
    assert identity.steps == 3
    assert not Coefficients.constant(3, 1.0, 1.0 + 2**-52).is_identity


def test_ramp_is_linear_to_one() -> None:
    ramp = Coefficients.ramp(5, 1.2, 0.6)
    assert ramp.model == pytest.approx((1.2, 1.15, 1.1, 1.05, 1.0), abs=1e-15)
    assert ramp.sample == pytest.approx((0.6, 0.7, 0.8, 0.9, 1.0), abs=1e-15)


def test_ramp2_is_linear_between_its_ends() -> None:
    ramp = Coefficients.ramp2(3, 1.2, 0.8, 0.9, 1.3)
    assert ramp.model == pytest.approx((1.2, 1.0, 0.8), abs=1e-15)
    assert ramp.sample == pytest.approx((0.9, 1.1, 1.3), abs=1e-15)


@pytest.mark.parametrize("steps", range(1, 17))
def test_ends_of_a_ramp_are_exact(steps: int) -> None:
    """1 + (1 - 1/3) * 1 is not 1 in every order of operations; a ramp from 1 to 1 is identity."""
    assert Coefficients.ramp(steps, 1.0, 1.0).is_identity
    first, last = 1.1, 0.7
    ramp = Coefficients.ramp2(steps, first, last, last, first)
    assert (ramp.model[0], ramp.sample[0]) == (first, last)
    if steps > 1:
        assert (ramp.model[-1], ramp.sample[-1]) == (last, first)


def test_one_step_takes_the_value_itself() -> None:
    assert Coefficients.ramp(1, 1.2, 0.9) == Coefficients((1.2,), (0.9,))
    assert Coefficients.ramp2(1, 1.2, 5.0, 0.9, 5.0) == Coefficients((1.2,), (0.9,))


def test_values_are_frozen_floats() -> None:
    coefficients = Coefficients([1, Fraction(1, 2)], (value for value in (2, 3)))  # type: ignore[arg-type]
    assert coefficients == Coefficients((1.0, 0.5), (2.0, 3.0))
    assert all(type(value) is float for value in coefficients.model + coefficients.sample)
    assert {coefficients: "hashable"}[Coefficients((1.0, 0.5), (2.0, 3.0))]
    with pytest.raises(dataclasses.FrozenInstanceError):
        coefficients.model = (1.0,)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model", "sample", "words"),
    [
        ((1.0,), (1.0, 1.0), "1 model and 2 sample coefficients; expected equally many"),
        ((), (), r"model = \[\]; expected one number per step"),
        ((1.0, math.nan), (1.0, 1.0), r"model\[1\] = nan; expected a finite number above 0"),
        ((1.0,), (math.inf,), r"sample\[0\] = inf; expected a finite number above 0"),
        ((10**400,), (1.0,), r"model\[0\] = inf; expected a finite number above 0"),
        ((0,), (1.0,), r"model\[0\] = 0.0; expected a finite number above 0"),
        ((1.0,), (-0.5,), r"sample\[0\] = -0.5; expected a finite number above 0"),
        ((True,), (1.0,), r"model\[0\] = True; expected a number, such as 1.0, not bool"),
        (("1.0",), (1.0,), r"model\[0\] = '1.0'; expected a number, such as 1.0, not str"),
        ((None,), (1.0,), r"model\[0\] = None; expected a number"),
        (1.0, (1.0,), "model = 1.0; expected a list, one number per step"),
        ((1.0,), "11", "sample = '11'; expected a list, one number per step"),
    ],
)
def test_refuses_in_words(model: Any, sample: Any, words: str) -> None:
    with pytest.raises(CoefficientsError, match=words) as refusal:
        Coefficients(model, sample)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, None])
def test_refuses_a_number_of_steps(steps: Any) -> None:
    for make in (Coefficients.identity, lambda n: Coefficients.ramp(n, 1.1, 0.9)):
        with pytest.raises(CoefficientsError, match=r"steps = .*; expected a whole number"):
            make(steps)


def test_require_steps_names_both_numbers() -> None:
    coefficients = Coefficients.identity(4)
    coefficients.require_steps(4)
    with pytest.raises(
        CoefficientsError, match="are for 4 steps, the schedule has 2; sample with 4"
    ):
        coefficients.require_steps(2)


def test_json_is_exact() -> None:
    assert Coefficients.from_json(RAGGED.to_json()) == RAGGED
    dice = random.Random(0)
    many = tuple(dice.uniform(0.4, 1.6) for _ in range(64))
    assert Coefficients.from_json(Coefficients(many, many).to_json()).model == many


def test_json_says_what_it_is() -> None:
    written = json.loads(Coefficients.ramp(2, 1.1, 0.9).to_json())
    assert written.pop("digest").startswith("sha256:")
    assert written == json.loads(document())


def test_provenance_is_kept_in_the_file_and_ignored_by_the_value() -> None:
    provenance = {"study": "demo", "trial": 17, "verdict": None}
    text = RAGGED.to_json(provenance)
    assert json.loads(text)["provenance"] == provenance
    assert Coefficients.from_json(text) == RAGGED
    for unfit in ({"path": Path()}, {"value": math.nan}):
        with pytest.raises(CoefficientsError, match=r"provenance: .*; expected what JSON can hold"):
            RAGGED.to_json(unfit)


def test_a_change_is_seen_and_a_new_layout_is_none() -> None:
    text = RAGGED.to_json({"verdict": "improved", "trials": 4, "share": 1.0})
    content = json.loads(text)
    for layout in (
        json.dumps(content),
        json.dumps(content, indent=4, sort_keys=True),
        text.replace('"share": 1.0', '"share": 1').replace('"trials": 4', '"trials": 4.0'),
    ):
        assert Coefficients.from_json(layout) == RAGGED
    changes = {
        "model": [1.0, *content["model"][1:]],
        "provenance": content["provenance"] | {"verdict": "worse"},
        "digest": "sha256:0",
    }
    for key, value in changes.items():
        with pytest.raises(
            CoefficientsError, match=r"^here: changed since .* digest = .*; export again, or take"
        ):
            Coefficients.from_json(json.dumps(content | {key: value}), place="here")
    by_hand = {key: value for key, value in (content | changes).items() if key != "digest"}
    assert Coefficients.from_json(json.dumps(by_hand)).model[0] == 1.0


def test_saves_and_loads(tmp_path: Path) -> None:
    path = tmp_path / "ä b.json"
    RAGGED.save(path, provenance={"prompt": "ein Käse"})
    assert Coefficients.load(path) == RAGGED


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON: .*; correct it, or export the file again"),
        (document()[:-9], "not valid JSON"),
        ("[1.0]", "expected JSON with format = 'qsched-coefficients'"),
        (document(format="other"), "expected JSON with format = 'qsched-coefficients'"),
        (document(version=3), "version = 3; this qsched reads 1 to 2; upgrade qsched"),
        (document(version=3, hint=0), "version = 3"),  # what a newer version adds is not the news
        (document(version=True), "version = True"),
        (document(version=...), "version = None"),
        (document(sample=...), "missing or unknown: sample; expected format, version"),
        (document(smaple=[1.0, 1.0]), "missing or unknown: smaple"),
        (document(steps=4), "steps = 4; expected 2, the number of coefficients"),
        (document(steps="2"), "steps = '2'; expected 2"),
        (document(model=[1.0, None]), r"model\[1\] = None; expected a number"),
        (document(model=[1.0, math.nan]), r"model\[1\] = nan; expected a finite number"),
        (document(model=1.0), "model = 1.0; expected a list"),
        (document(model=[1.0]), "1 model and 2 sample"),
        (document(provenance="me"), "provenance: expected an object"),
    ],
)
def test_refuses_a_broken_file_by_its_name(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "coefficients.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CoefficientsError, match=words) as refusal:
        Coefficients.load(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


def test_refuses_what_it_cannot_read_or_write(tmp_path: Path) -> None:
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (binary, tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(CoefficientsError, match=f"{path}: cannot be read"):
            Coefficients.load(path)
    with pytest.raises(CoefficientsError, match="cannot be written"):
        RAGGED.save(binary / "coefficients.json")


@pytest.mark.parametrize("steps", [2, 3, 4, 8])
@pytest.mark.parametrize("name", NAMES)
class TestParametrisation:
    def test_identity_changes_nothing(self, name: str, steps: int) -> None:
        space = parametrisation(name, steps)
        assert space.coefficients(space.identity) == Coefficients.identity(steps)
        assert space.vector(Coefficients.identity(steps)) == space.identity

    def test_vector_is_the_inverse(self, name: str, steps: int) -> None:
        space = parametrisation(name, steps)
        dice = random.Random(steps)
        vector = tuple(dice.uniform(0.6, 1.4) for _ in range(space.dimension))
        assert space.vector(space.coefficients(vector)) == pytest.approx(vector, rel=1e-12)

    def test_a_mapping_says_the_same_in_any_order(self, name: str, steps: int) -> None:
        space = parametrisation(name, steps)
        vector = [1.0 + i / 100 for i in range(space.dimension)]
        named = dict(zip(space.names, vector, strict=True))
        backwards = dict(reversed(named.items()))
        assert space.coefficients(backwards) == space.coefficients(vector)

    def test_a_name_says_which_series_moves(self, name: str, steps: int) -> None:
        space = parametrisation(name, steps)
        neutral = dict(zip(space.names, space.identity, strict=True))
        for parameter in space.names:
            moved = space.coefficients(neutral | {parameter: 1.25})
            assert (set(moved.model) != {1.0}) == parameter.startswith("c_eps")
            assert (set(moved.sample) != {1.0}) == parameter.startswith("c_x")
            assert bool(moved.average) == parameter.startswith("x0")

    def test_the_box_holds_the_identity_and_the_guess(self, name: str, steps: int) -> None:
        space = parametrisation(name, steps)
        for vector in filter(None, (space.identity, space.guess)):
            for value, (low, high) in zip(vector, space.box(DEFAULT_BOUNDS), strict=True):
                assert low <= value <= high
        if space.guess:
            guess = space.coefficients(space.guess)
            assert guess.average is not None
            ratios = [a / b for a, b in pairwise(guess.average)]
            assert ratios == pytest.approx([DECAY] * (steps - 1))
            assert guess.scalars.is_identity
            assert space.pinned.items() <= dict(zip(space.names, space.guess, strict=True)).items()

    def test_is_a_value(self, name: str, steps: int) -> None:
        space = parametrisation(name, steps)
        assert pickle.loads(pickle.dumps(space)) == Parametrisation(name, steps) == space


def test_names_and_meanings() -> None:
    assert parametrisation("constant", 3).names == ("c_eps", "c_x")
    assert parametrisation("ramp", 3).names == ("c_eps_first", "c_x_first")
    assert parametrisation("ramp2", 3).names == (
        "c_eps_first",
        "c_eps_last",
        "c_x_first",
        "c_x_last",
    )
    assert parametrisation("per-step", 2).names == ("c_eps[0]", "c_eps[1]", "c_x[0]", "c_x[1]")
    dimensions = {name: parametrisation(name, 4).dimension for name in NAMES}
    assert dimensions == {
        **{"constant": 2, "ramp": 2, "ramp2": 4, "per-step": 8, "x0-decay": 1, "x0-average": 3},
        **{"constant+x0-decay": 3, "ramp+x0-decay": 3, "ramp2+x0-decay": 5},
        **{"constant+x0-average": 5, "ramp+x0-average": 5, "ramp2+x0-average": 7},
        **{"per-step+x0-decay": 9, "per-step+x0-average": 11},
        **{"constant+x0-fade": 3, "ramp+x0-fade": 3, "ramp2+x0-fade": 5, "per-step+x0-fade": 9},
    }
    averages = parametrisation("ramp+x0-average", 3)
    assert averages.names == ("c_eps_first", "c_x_first", "x0[0]", "x0[1]")
    expected_average = Coefficients.ramp(3, 1.2, 0.9).averaged((0.25, 0.5, 0.25))
    assert averages.coefficients((1.2, 0.9, 0.25, 0.5)) == expected_average
    decay = parametrisation("x0-decay", 3)
    assert decay.coefficients((0.5,)) == Coefficients.identity(3).averaged((1 / 7, 2 / 7, 4 / 7))
    assert decay.coefficients((1.0,)).average == pytest.approx((1 / 3,) * 3)
    with pytest.raises(CoefficientsError, match="expected what 'x0-decay' can express"):
        decay.vector(Coefficients.identity(3).averaged((0.0, 1.0, 0.0)))
    vectors = {"constant": (1.2, 0.8), "ramp": (1.2, 0.8), "ramp2": (1.2, 0.9, 0.8, 1.1)}
    expected = {
        "constant": Coefficients.constant(4, 1.2, 0.8),
        "ramp": Coefficients.ramp(4, 1.2, 0.8),
        "ramp2": Coefficients.ramp2(4, 1.2, 0.9, 0.8, 1.1),
    }
    assert expected == {
        name: parametrisation(name, 4).coefficients(v) for name, v in vectors.items()
    }
    per_step = parametrisation("per-step", 2).coefficients((1.2, 1.1, 0.9, 0.8))
    assert per_step == Coefficients((1.2, 1.1), (0.9, 0.8))


def test_one_step_has_one_pair() -> None:
    for name in ("constant", "ramp", "per-step"):
        assert parametrisation(name, 1).coefficients((1.2, 0.8)) == Coefficients((1.2,), (0.8,))
    with pytest.raises(CoefficientsError, match="'ramp2' at 1 step; expected at least 2"):
        parametrisation("ramp2", 1)


def test_refuses_what_it_cannot_express() -> None:
    zigzag = Coefficients((1.1, 0.9, 1.1), (1.0, 1.0, 1.0))
    for name in ("constant", "ramp", "ramp2"):
        with pytest.raises(CoefficientsError, match=f"expected what '{name}' can express"):
            parametrisation(name, 3).vector(zigzag)
    assert parametrisation("per-step", 3).vector(zigzag)[:3] == zigzag.model
    with pytest.raises(CoefficientsError, match="are for 3 steps, the schedule has 4"):
        parametrisation("per-step", 4).vector(zigzag)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((1.0,), "expected 2 numbers: c_eps_first, c_x_first"),
        ((1.0, 1.0, 1.0), "expected 2 numbers"),
        ({"c_eps_first": 1.0}, "expected 2 numbers"),
        ({"c_eps_first": 1.0, "c_x": 1.0}, "expected 2 numbers"),
        ((1.0, math.nan), "c_x_first = nan; expected a finite number"),
        ((1.0, -0.5), r"sample\[0\] = -0.5; expected a finite number above 0|above 0"),
        ({"c_eps_first": True, "c_x_first": 1.0}, "c_eps_first = True; expected a number"),
    ],
)
def test_refuses_a_vector(values: Any, words: str) -> None:
    with pytest.raises(CoefficientsError, match=words):
        parametrisation("ramp", 4).coefficients(values)


@pytest.mark.parametrize(
    ("average", "words"),
    [
        ((0.5, 0.5), "average: 2 weights; expected 3, one per step"),
        ((0.5, 0.5, 0.5), r"adds up to 1.5; expected 1"),
        ((0.5, math.nan, 0.5), r"average\[1\] = nan; expected a finite number"),
        ("abc", "average = 'abc'; expected a list"),
        ((True, 0.0, 0.0), r"average\[0\] = True; expected a number"),
    ],
)
def test_refuses_weights(average: Any, words: str) -> None:
    with pytest.raises(CoefficientsError, match=words):
        Coefficients((1.0,) * 3, (1.0,) * 3, average)


def test_an_average_is_kept_in_a_file_of_version_2(tmp_path: Path) -> None:
    averaged = Coefficients.ramp(3, 1.1, 0.9).averaged((0.1, -0.2, 1.1))
    averaged.save(tmp_path / "c.json")
    assert Coefficients.load(tmp_path / "c.json") == averaged
    assert json.loads(averaged.to_json())["version"] == 2
    assert json.loads(averaged.scalars.to_json())["version"] == 1
    assert Coefficients.from_dict(averaged.to_dict()) == averaged
    assert not averaged.is_identity
    last_alone = Coefficients.identity(3).averaged((0.0, 0.0, 1.0))
    assert last_alone == Coefficients.identity(3)
    assert last_alone.is_identity


def test_refuses_an_unknown_parametrisation() -> None:
    with pytest.raises(
        CoefficientsError, match="= 'spline'; expected one of constant, ramp, ramp2"
    ):
        parametrisation("spline", 4)
    with pytest.raises(CoefficientsError, match="steps = 0"):
        parametrisation("ramp", 0)


def test_bounds_hold_the_identity() -> None:
    assert (DEFAULT_BOUNDS.low, DEFAULT_BOUNDS.high) == (0.8, 1.2)
    assert 1.2 in DEFAULT_BOUNDS
    assert 1.21 not in DEFAULT_BOUNDS
    assert 0.79 not in DEFAULT_BOUNDS
    assert Bounds(1, 2) == Bounds(1.0, 2.0)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (1.1, 1.4, r"bounds \[1.1, 1.4\]; expected low < high and 1 between"),
        (0.6, 0.9, "1 between"),
        (1.4, 0.6, "low < high"),
        (1.0, 1.0, "low < high"),
        (0.0, 1.4, "low = 0.0; expected a finite number above 0"),
        (0.6, math.inf, "high = inf"),
        (False, 1.4, "low = False; expected a number"),
    ],
)
def test_refuses_bounds(low: Any, high: Any, words: str) -> None:
    with pytest.raises(CoefficientsError, match=words):
        Bounds(low, high)


def test_a_score_error_names_scorer_and_prompt_even_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(ScoreError("clip: nan", scorer="clip", prompt="a cat")))
    assert isinstance(error, ScoreError)
    assert (str(error), error.scorer, error.prompt) == ("clip: nan", "clip", "a cat")
