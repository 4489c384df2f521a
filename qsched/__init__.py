"""qsched: calibrate the sampling schedule of quantized few-step text-to-image models.

    import qsched

    outcome = qsched.run("studies/demo.toml")          # create or resume, work, validate, report
    print(outcome.verdict, outcome.sentence)

    pipeline.scheduler = qsched.precondition(pipeline.scheduler, outcome.coefficients)

Everything public is importable from here; nothing is imported before it is used, so
``import qsched`` stays free of torch.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qsched.api import (
        Observer,
        Outcome,
        compare,
        create,
        generate,
        load,
        load_study,
        preview,
        push,
        run,
        take_away,
        validate,
        work,
        write_report,
    )
    from qsched.errors import QschedError
    from qsched.pipelines.generator import ImageGenerator
    from qsched.pipelines.loading import load_pipeline
    from qsched.prompts import Prompt
    from qsched.schedule.coefficients import Coefficients
    from qsched.schedule.parametrisations import Bounds, Parametrisation, parametrisation
    from qsched.schedule.preconditioning import coefficients_of, precondition
    from qsched.service.storage import Storage
    from qsched.study.study import Study

__all__ = [
    "Bounds",
    "Coefficients",
    "ImageGenerator",
    "Observer",
    "Outcome",
    "Parametrisation",
    "Prompt",
    "QschedError",
    "Storage",
    "Study",
    "__version__",
    "coefficients_of",
    "compare",
    "create",
    "generate",
    "load",
    "load_pipeline",
    "load_study",
    "parametrisation",
    "precondition",
    "preview",
    "push",
    "run",
    "take_away",
    "validate",
    "work",
    "write_report",
]

__version__ = version("qsched")

_HOME = {
    "Bounds": "schedule.parametrisations",
    "Coefficients": "schedule.coefficients",
    "ImageGenerator": "pipelines.generator",
    "Observer": "api",
    "Outcome": "api",
    "Parametrisation": "schedule.parametrisations",
    "Prompt": "prompts",
    "QschedError": "errors",
    "Storage": "service.storage",
    "Study": "study.study",
    "coefficients_of": "schedule.preconditioning",
    "compare": "api",
    "create": "api",
    "generate": "api",
    "load": "api",
    "load_pipeline": "pipelines.loading",
    "load_study": "api",
    "parametrisation": "schedule.parametrisations",
    "precondition": "schedule.preconditioning",
    "preview": "api",
    "push": "api",
    "run": "api",
    "take_away": "api",
    "validate": "api",
    "work": "api",
    "write_report": "api",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"qsched.{_HOME[name]}"), name)
    raise AttributeError(f"module 'qsched' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
