"""Metrics by name: what is accepted, what is refused, and what is evidence from outside."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qsched.errors import ScoreError
from qsched.scoring.catalog import (
    HELD_OUT,
    PRESETS,
    SCORERS,
    UNKNOWN,
    independent,
    metric_entry,
    scorer_entry,
)
from qsched.study.fingerprint import differences
from qsched.study.study import load_study
from tests.support import fakes_light

SPELT = ("open_clip", "pyiqa")
"""Names that go on after a colon."""


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in SCORERS.built_in if name not in (*HELD_OUT, *SPELT)),
        "open_clip:ViT-B-32/laion2b_s34b_b79k",
        "open_clip:ViT-B-32//weights/mine.pt",
        "open_clip:local-dir:/some folder/clip",
        "open_clip:hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "pyiqa:musiq",
        "pyiqa:clipiqa+_vitL14_512",
        "pyiqa:a_metric_of_tomorrow",
    ],
)
def test_a_scorer_has_an_entry(name: str) -> None:
    entry = scorer_entry(name)
    assert entry == metric_entry(name)
    assert entry.name == name
    assert entry.networks
    assert entry.description
    assert bool(entry.needs) == bool(entry.extra)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clip-score", "did you mean 'clipscore'"),
        ("hps", "expected one of"),
        ("demo_quality", "did you mean 'demo-quality'"),
        ("open_clip:ViT-B-32", "expected open_clip:MODEL/TAG"),
        ("open_clip:/openai", "expected open_clip:MODEL/TAG"),
        ("open_clip:local-dir:", "expected open_clip:MODEL/TAG"),
        ("open_clip:ftp:model/tag", "expected open_clip:MODEL/TAG"),
        ("pyiqa:", "expected pyiqa:NAME"),
        ("pyiqa:two words", "expected pyiqa:NAME"),
        ("pyiqa:lpips-vgg", "reference image"),
        ("pyiqa:fid", "whole set"),
        ("pyiqa:clipscore", "captions"),
        ("similarity", "held-out metric"),
        ("attributes", "held-out metric"),
        ("clipscore:large", "takes nothing after a colon"),
        ("os:getcwd", "expected a class with direction"),
        ("pathlib:Path", "has no direction and no prepare and no score"),
        ("nowhere:Sharpness", "put nowhere.py beside the study file"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(name: str, words: str) -> None:
    with pytest.raises(ScoreError, match=words) as raised:
        scorer_entry(name)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_presets_are_the_papers() -> None:
    assert PRESETS["clip"] == (("clipscore", 1.0, "raw"), ("clip-iqa", 2.0, "raw"))
    assert PRESETS["clip-log"] == (("clipscore", 1.0, "log"), ("clip-iqa", 2.0, "raw"))
    assert PRESETS["hps"] == (("aq-map", 1.0, "raw"), ("hpsv2.1", 2.0, "raw"))
    assert PRESETS["standardised"] == PRESETS["clip"]
    assert {
        scorer for terms in PRESETS.values() for scorer, _, _ in terms
    } <= SCORERS.built_in.keys()


@pytest.mark.parametrize(
    ("name", "searched", "expected"),
    [
        ("similarity", ["demo-alignment", "demo-quality"], True),
        ("pixels", ["demo-alignment", "demo-quality"], True),
        ("attributes", ["demo-alignment", "demo-quality"], False),
        ("attributes", ["demo-quality"], True),
        ("clipscore", ["clipscore"], False),
        ("hpsv2.1", ["clipscore", "clip-iqa"], True),
        # Two continuations of one model's training, and that model itself.
        ("pickscore", ["aq-map", "hpsv2.1"], False),
        ("pickscore", ["open_clip:ViT-H-14/laion2b_s32b_b79k"], False),
        # One set of weights under several names.
        ("open_clip:ViT-L-14-quickgelu/openai", ["clipscore"], False),
        ("open_clip:ViT-L-14-336-quickgelu/openai", ["clipscore"], False),
        ("open_clip:ViT-L-14/laion2b_s32b_b82k", ["clipscore"], True),
        ("pyiqa:clipiqa+", ["clip-iqa"], False),
        ("pyiqa:laion_aes", ["clipscore"], False),
        ("pyiqa:qalign", ["clipscore"], False),
        ("pyiqa:musiq", ["clipscore", "clip-iqa"], True),
        ("pyiqa:musiq-ava", ["pyiqa:musiq"], False),
        ("pyiqa:niqe", ["pyiqa:brisque"], False),
        # Of what nobody knows, nothing is evidence; a distance to the reference still is.
        ("pyiqa:a_metric_of_tomorrow", ["clipscore"], False),
        ("clipscore", ["pyiqa:a_metric_of_tomorrow"], False),
        ("similarity", ["pyiqa:a_metric_of_tomorrow"], True),
    ],
)
def test_independent_metrics_share_no_network(
    name: str, searched: list[str], expected: bool
) -> None:
    assert independent(name, searched) is expected


def test_no_metric_is_independent_of_itself() -> None:
    for name in [*SCORERS.built_in, "open_clip:ViT-B-32/openai", "pyiqa:piqe"]:
        if name in SPELT:
            continue
        assert not independent(name, [name])


def test_declarations_load_neither_torch_nor_pyiqa() -> None:
    code = (
        "import sys\n"
        "from qsched.scoring.catalog import metric_entry\n"
        "metric_entry('pyiqa:musiq'), metric_entry('open_clip:ViT-B-32/openai')\n"
        "assert not {'torch', 'pyiqa', 'open_clip', 'textblob'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_all_of_pyiqas_metrics_are_known() -> None:
    """No-reference metrics have their networks declared; all others are refused without pyiqa."""
    configs = pytest.importorskip("pyiqa.default_model_configs").DEFAULT_CONFIGS
    refused = set()
    for name in configs:
        try:
            assert UNKNOWN not in metric_entry(f"pyiqa:{name}").networks, name
        except ScoreError:
            refused.add(name)
    others = {name for name, config in configs.items() if config["metric_mode"] != "NR"}
    sets = {"fid", "sfid", "fid_dinov2", "inception_score"}
    assert refused == others | sets | {"clipscore"}


def test_weights_are_pinned_and_in_the_fingerprint(tmp_path: Path) -> None:
    own = tmp_path / "mine.pt"
    own.write_bytes(b"weights")
    path = fakes_light.study_file(tmp_path)
    names = ["pixels", "hpsv2.1", "pickscore", f"open_clip:ViT-B-32/{own}"]
    path.write_text(path.read_text().replace('["pixels"]', json.dumps(names)))
    before = load_study(path).fingerprint()
    assert re.fullmatch(
        r"xswu/HPSv2@[0-9a-f]{40}/HPS_v2.1_compressed.pt", before["weights.hpsv2.1"]
    )
    assert before["weights.pickscore"].count("@") == 2
    own.write_bytes(b"others")
    after = load_study(path).fingerprint()
    assert list(differences(before, after)) == [f"weights.open_clip:ViT-B-32/{own}"]
