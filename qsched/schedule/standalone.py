"""A preconditioned scheduler as one file that needs diffusers and no qsched. Loads no torch.

The file is `step`, word for word, and a class of the stock scheduler's own: it does what qsched
does.
"""

import re
from importlib.resources import files

from qsched import __version__

PREFIX = "Preconditioned"

_HEAD = """\
# Copyright the qsched authors. Licensed under the Apache License, Version 2.0:
# https://www.apache.org/licenses/LICENSE-2.0
#
# {stock} with Q-Sched's coefficients, without qsched.
# Written by qsched {version}.
#
#     pipeline.scheduler = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
#
# FOLDER holds this file, scheduler_config.json with the coefficients, and config.json, which leads
# diffusers here. The stock class's own from_pretrained(FOLDER) loads a scheduler without them.
"""

_TAIL = '''

# What follows is {stock}'s own.

import json  # noqa: E402
from pathlib import Path  # noqa: E402

from {package} import {stock} as Stock  # noqa: E402

_SOURCE = Path(__file__).read_bytes()


class {name}(Preconditioned, Stock):
    """The stock scheduler with coefficients. Saved alone or in a pipeline, it brings this file."""

    # In a saved pipeline, model_index.json names the file in the scheduler's folder by this.
    __module__ = "{module}"

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes scheduler_config.json, config.json and this file."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        name, module = type(self).__name__, type(self).__module__
        (folder / f"{{module}}.py").write_bytes(_SOURCE)
        config = {{"_class_name": name, "auto_map": {{"AutoModel": f"{{module}}.{{name}}"}}}}
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        super().save_config(save_directory, push_to_hub, **kwargs)
'''


def module_name(stock: str) -> str:
    """The name of the file for a stock class, without .py; another one for each class.

    diffusers copies all such files into one folder, where equal names would meet.
    """
    words = stock.removesuffix("Scheduler")
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", words)
    return f"preconditioned_{snake.lower()}"


def auto_map(stock: str) -> dict[str, object]:
    """The content of config.json, by which diffusers' AutoModel finds the class in the file."""
    name = PREFIX + stock
    return {"_class_name": name, "auto_map": {"AutoModel": f"{module_name(stock)}.{name}"}}


def source(stock: str, package: str = "diffusers") -> str:
    """The file's content. `stock`: a scheduler class of the module `package`."""
    step = (files("qsched.schedule") / "step.py").read_text(encoding="utf-8")
    words = {
        "stock": stock,
        "name": PREFIX + stock,
        "module": module_name(stock),
        "package": package,
        "version": __version__,
    }
    return _HEAD.format(**words) + step + _TAIL.format(**words)
