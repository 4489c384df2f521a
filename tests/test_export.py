"""What is taken away: numbers that say where they come from, a scheduler that behaves as found."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from qsched.coefficients import Coefficients
from qsched.export import export
from qsched.schedule import PreconditionedFlowMatchEulerDiscreteScheduler, precondition

RAMP = Coefficients.ramp(4, 1.1, 0.9)


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
