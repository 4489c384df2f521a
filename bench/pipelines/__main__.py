"""Whether cached images are those of plain calls, for every text-to-image class of diffusers.

    python -m bench.pipelines [CLASS ...] [--json]

Each row is a pipeline class with tiny random weights, with or without classifier-free guidance, in
batches of 1, 2 and 4. Four captions of different length are drawn by the pipeline alone and three
times by the generator, as it is after its self-test: filling its caches, reading them, and reading
them in another order. "=" is equal to the bit, else the largest difference of a pixel; where the
self-test switches batches off, the plain images are those of single calls. `time` is a trial's
processor time beside that of plain calls, once the caches are filled, in batches of 4. A class that
is refused says so in one line.
"""

import argparse
import json
import logging
import sys
import time
from typing import Any

import torch

from bench.pipelines.cases import Case, cases
from bench.printing import show
from qsched.errors import QschedError
from qsched.libraries import quiet
from qsched.pipelines.generator import ImageGenerator
from qsched.prompts import Prompt
from qsched.schedule.coefficients import Coefficients

CAPTIONS = ("a cat", "a dog in the rain at night", "an owl", "a hen and a very old fox")
PROMPTS = [Prompt(caption, 7 * index + 1) for index, caption in enumerate(CAPTIONS)]
ORDERS = ([0, 1, 2, 3], [0, 1, 2, 3], [3, 1, 0, 2])
BATCHES = (1, 2, 4)


def row(case: Case) -> dict[str, Any]:
    """A line of the table."""
    found: dict[str, Any] = {
        "class": case.name.removesuffix("Pipeline"),
        "guidance": "yes" if case.guided else "",
    }
    last: dict[str, str] = {}
    for size in BATCHES:
        try:
            found[f"batch {size}"], last = _batch(case, size)
        except QschedError as error:
            return found | {"switched off": f"refused: {error}"}
    return found | last


def _batch(case: Case, size: int) -> tuple[str, dict[str, str]]:
    """How the images differ in batches of this size, and what the table says of the last size."""
    with quiet():
        pipeline = case.make()
    generator = ImageGenerator(pipeline, case.sampling, batch_size=size)
    alone = ImageGenerator(case.make(), case.sampling, batch_size=size, caches=frozenset())
    generator.prepare(PROMPTS)
    assert generator.tested
    step = generator.batch_size
    began = time.process_time()
    plain = torch.cat([alone.plain(PROMPTS[at : at + step]) for at in range(0, 4, step)])
    took = time.process_time() - began
    identity = Coefficients.identity(case.sampling.steps)
    different = 0.0
    for order in ORDERS:
        images = generator.generate([PROMPTS[index] for index in order], identity)
        different = max(different, float((images - plain[order]).abs().max()))
    began = time.process_time()
    generator.generate(PROMPTS, Coefficients.constant(case.sampling.steps, 1.05, 0.97))
    ratio = (time.process_time() - began) / took
    off = "; ".join(generator.tested.off)
    return f"{different:.1g}" if different else "=", {"time": f"{ratio:.0%}", "switched off": off}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("classes", nargs="*", help="names, by default all")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the pipelines are too small for more
    logging.getLogger("qsched").setLevel(logging.ERROR)  # the table says what is switched off
    chosen = [case for case in cases() if not options.classes or case.name in options.classes]
    rows = []
    for case in chosen:
        rows.append(row(case))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    names = {case.name for case in chosen}
    same = names - {
        case.name
        for case, each in zip(chosen, rows, strict=True)
        if any(each.get(f"batch {size}") != "=" for size in BATCHES)
    }
    title = f"{len(same)} of {len(names)} classes are equal to the bit in batches of 1, 2 and 4"
    show({title: rows}, as_json=options.json)


if __name__ == "__main__":
    main()
