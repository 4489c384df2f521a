"""The packages that a study needs beside qsched's own, and how to install those that are missing.

Each room says what its parts import; nothing is imported here to find out.
"""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from qsched.errors import StudyError
from qsched.pipelines.table import backend_of_encoders
from qsched.quantization.backend import Backend
from qsched.scoring.catalog import metric_entry
from qsched.search.catalog import packages_of_sampler
from qsched.study.file import StudyFile
from qsched.study.study import Study

_SAMPLERS = {"nevergrad": "nevergrad"}
"""Of the packages of samplers those that an extra installs."""


def needed(study: Study) -> dict[str, str]:
    """{module: the extra that installs it, "" where it has a name of its own} of a whole run, from
    loading the model to the proof. Its own plug-ins have to be at hand: `Study.code`."""
    tables = study.tables
    modules = {module: each.extra for each in _backends(tables) for module in each.modules}
    if tables.model.loras:
        modules["peft"] = "gpu"
    for name in (*study.scorers, *tables.validation.metrics):
        scorer = metric_entry(name)
        modules |= dict.fromkeys(scorer.needs, scorer.extra)
    proposing = packages_of_sampler(tables.search.sampler, tables.space.dimension)
    modules |= {name: _SAMPLERS[name] for name in proposing if name in _SAMPLERS}
    if (study.store or "").startswith("s3://"):
        modules["boto3"] = "s3"
    return modules


def missing(study: Study) -> dict[str, str]:
    """Those of `needed` that are not installed here."""
    return {name: extra for name, extra in needed(study).items() if find_spec(name) is None}


def require(study: Study) -> None:
    """Raises StudyError, in one line that names all that is missing and the command for it."""
    with study.code():
        lacking = missing(study)
    if lacking:
        raise StudyError(
            f"study {study.name!r} needs packages that are missing: {', '.join(lacking)}; "
            f"{installing(lacking)}"
        )


def installing(lacking: Mapping[str, str]) -> str:
    """The command that installs modules, each by qsched's extra, or by its own name without one."""
    extras = ",".join(sorted(set(filter(None, lacking.values()))))
    others = [module for module, extra in lacking.items() if not extra]
    return " ".join(["pip install", *([f"'qsched[{extras}]'"] if extras else []), *others])


def _backends(tables: StudyFile) -> Iterator[Backend]:
    """Those that quantize the denoiser and the text encoders."""
    yield tables.quantization.resolved()[0]
    encoders = backend_of_encoders(tables.model)
    if encoders is not None:
        yield encoders
