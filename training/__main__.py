"""Trains and evaluates the demo model shipped in `qsched/demo`, from emoji sprites, on a CPU.

    python -m training all                          # everything, in order (about 80 minutes)
    python -m training generator --work runs/demo-model --seed 0

Each stage leaves its result in --work and can be run again: a stage that was interrupted goes on
from its last checkpoint, with the random numbers it would have had.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

from qsched.evidence.real_images import SCENES
from qsched.pipelines.catalog import DEMO_FOLDER
from training.alignment import train_alignment
from training.autoencoder import train_autoencoder
from training.evaluation import evaluate
from training.generator import train_generator
from training.quality import train_quality
from training.scenes import make_data, make_scenes


def export(work: Path, seed: int) -> None:
    """Copies what is shipped into the package."""
    for part in ("pipeline", "alignment", "quality"):
        target = DEMO_FOLDER / part
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(
            work / part, target, ignore=shutil.ignore_patterns("*.pt", ".cache", "tmp*")
        )
    shutil.copyfile(work / SCENES.name, SCENES)
    files = [path for path in DEMO_FOLDER.rglob("*") if path.is_file()]
    for path in files:
        path.chmod(0o644)
    size = {path: path.stat().st_size / 1e6 for path in files}
    print(f"{sum(size.values()):.1f} MB in all, the largest file {max(size.values()):.1f} MB")


STAGES: dict[str, tuple[Callable[..., None], int]] = {
    "autoencoder": (train_autoencoder, 1800),
    "generator": (train_generator, 4000),
    "alignment": (train_alignment, 4000),
    "quality": (train_quality, 3000),
}


def main() -> None:
    """Runs one stage, or all of them in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("all", "data", "scenes", *STAGES, "evaluate", "export"))
    parser.add_argument("--work", type=Path, default=Path("runs/demo-model"))
    parser.add_argument("--sprites", type=Path, help="folder of the two npm tarballs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of training, instead of the stage's own")
    options = parser.parse_args()
    chosen, folder = options.stage, options.sprites or options.work / "sprites"
    for stage, file, make in (
        ("data", "data.pt", make_data),
        ("scenes", SCENES.name, make_scenes),
    ):
        if chosen == stage or (chosen == "all" and not (options.work / file).exists()):
            make(options.work, folder, options.seed)
    for stage, (train, steps) in STAGES.items():
        if chosen in ("all", stage):
            train(options.work, options.seed, options.steps or steps)
    if chosen in ("all", "evaluate"):
        evaluate(options.work, options.seed)
    if chosen in ("all", "export"):
        export(options.work, options.seed)


if __name__ == "__main__":
    main()
