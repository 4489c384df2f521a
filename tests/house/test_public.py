"""What may be imported from the root: all of it there, all of it documented, none of it slow."""

import inspect
import subprocess
import sys

import pytest

import qsched


def test_the_list_is_the_truth() -> None:
    assert set(qsched.__all__) == set(qsched._HOME) | {"__version__"}
    assert dir(qsched) == sorted(qsched.__all__)


@pytest.mark.parametrize("name", sorted(qsched._HOME))
def test_public_things_say_what_they_promise(name: str) -> None:
    thing = getattr(qsched, name)
    assert inspect.getdoc(thing)
    assert name in qsched.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'nothing'"):
        qsched.nothing  # noqa: B018


def test_importing_the_root_loads_next_to_nothing() -> None:
    program = "import qsched, sys; print({'torch', 'optuna', 'sqlalchemy'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
