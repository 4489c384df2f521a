"""A declared scorer, loaded. Whatever fails is said in one line.

What a scorer needs of a server is fetched first, by `hub`, and taken from the caches without a
request where it is there; then it is loaded from paths.
"""

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from qsched.errors import HubError, ScoreError, causes, in_one_line
from qsched.hub import explain
from qsched.scoring.catalog import ScorerEntry

if TYPE_CHECKING:
    from qsched.scoring.scorers import Comparison, Scorer


def load_scorer(entry: ScorerEntry, *, twin: bool = False) -> "Scorer | Comparison":
    """The scorer of an entry, in the computer's memory.

    `twin`: a tiny random network in place of the real one, without any request. Raises ScoreError.
    """
    for module in entry.needs:
        if find_spec(module) is None:
            raise ScoreError(f"{entry.name}: {_missing(module, entry)}", entry.name)
    try:
        scorer: Scorer | Comparison = _made(entry, twin)
    except ScoreError:
        raise
    except ImportError as error:
        problem = _missing(error.name, entry) if error.name else str(error)
        raise ScoreError(f"{entry.name}: {problem}", entry.name) from error
    except Exception as error:
        raise ScoreError(f"{entry.name}: {_unloadable(error, entry)}", entry.name) from error
    return scorer


def _made(entry: ScorerEntry, twin: bool) -> Any:
    """What the entry's function or class makes."""
    load: Any = entry.load
    if isinstance(load, str):
        module, _, name = load.partition(":")
        load = getattr(importlib.import_module(module), name)
        return load(*entry.arguments, **({} if entry.weightless else {"twin": twin}))
    stand_in: Callable[[], Any] = getattr(load, "twin", load)
    return stand_in() if twin else load()


def _unloadable(error: BaseException, entry: ScorerEntry) -> str:
    """Why weights can't be had or used, and what to do."""
    absent = any(isinstance(each, OSError | HubError) for each in causes(error))
    if not absent or entry.origin is not None:
        return f"{entry.source} can't be loaded: {in_one_line(error)}"
    problem = str(error)
    if not isinstance(error, HubError):
        problem = explain(error, entry.source, entry.download_gb)
    elif entry.download_gb:
        problem = problem.replace(
            "is not downloaded", f"is not downloaded ({entry.download_gb:.1f} GB)", 1
        )
    if "pyiqa" in entry.needs:
        problem += "; pyiqa's own files lie in torch's cache (TORCH_HOME)"
    return problem


def _missing(module: str, entry: ScorerEntry) -> str:
    """Which package is missing, and how to have it."""
    remedy = f"pip install 'qsched[{entry.extra}]'" if entry.extra else "reinstall qsched"
    if entry.origin is not None:
        remedy = "install it"
    if module == "pkg_resources":
        return f"pyiqa needs pkg_resources, which setuptools has until version 80; {remedy}"
    return f"the package {module} is missing; {remedy}"
