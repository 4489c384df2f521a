"""Samples exported schedulers as a person without qsched does, in a process that can't import it.

python -I plain_diffusers.py automodel|folder JOBS.json

`automodel`: `pipeline.scheduler = AutoModel...`, then the whole pipeline is saved, then the trap.
`folder`: what was saved is loaded as a whole.
"""

import json
import sys
from pathlib import Path
from typing import Any


class Blocked:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "qsched":
            raise ImportError(f"{name} is not installed here")


sys.meta_path.insert(0, Blocked())
try:
    import qsched  # noqa: F401

    raise SystemExit("qsched can be imported here")
except ImportError:
    pass

import diffusers  # noqa: E402
import torch  # noqa: E402
from diffusers import AutoModel, DiffusionPipeline  # noqa: E402


def sample(pipeline: DiffusionPipeline, job: dict[str, Any], name: str) -> None:
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in job["seeds"]]
    images = pipeline(generator=noise, output_type="pt", **job["arguments"]).images
    torch.save(images, Path(job["out"]) / f"{name}.pt")


def by_automodel(job: dict[str, Any]) -> None:
    pipeline = DiffusionPipeline.from_pretrained(job["pipeline"], **job["missing"])
    folder = Path(job["out"]) / "scheduler"
    pipeline.scheduler = AutoModel.from_pretrained(str(folder), trust_remote_code=True)
    sample(pipeline, job, "automodel")
    pipeline.save_pretrained(Path(job["out"]) / "whole")
    stock = getattr(diffusers, job["stock"])
    pipeline.scheduler = stock.from_pretrained(folder)
    assert pipeline.scheduler.config["model_coefficients"] == job["model"]
    sample(pipeline, job, "trap")


def by_folder(job: dict[str, Any]) -> None:
    whole = Path(job["out"]) / "whole"
    pipeline = DiffusionPipeline.from_pretrained(whole, trust_remote_code=True, **job["missing"])
    sample(pipeline, job, "folder")


for each in json.loads(Path(sys.argv[2]).read_text()):
    {"automodel": by_automodel, "folder": by_folder}[sys.argv[1]](each)
assert not any(name.partition(".")[0] == "qsched" for name in sys.modules)
