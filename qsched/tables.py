"""What the tables of a study file are made of (pydantic); a broken rule in words.

Each room has its own table, beside what uses it; `study.file` composes them.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)

from qsched.errors import ConfigError, QschedError, first_line, in_one_line, one_line
from qsched.files.documents import located, shown

Table = TypeVar("Table", bound="Section")
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Section(BaseModel):
    """A table of the study file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def accepted_by(check: Callable[[Any], object]) -> AfterValidator:
    """Accepts what `check` takes without a QschedError; its words become the problem's."""

    def validate(value: Any, info: ValidationInfo) -> Any:
        if is_stored(info):
            return value
        try:
            check(value)
        except QschedError as error:
            raise ValueError(str(error)) from error
        return value

    return AfterValidator(validate)


Place = Annotated[str, accepted_by(lambda source: located(source, Path()))]
"""What stands for a file, a folder or a name on the hub; something may be there or not."""

ONE, SEVERAL = "<table>", "<tables>"
"""The tags of a key that takes one table or a list of them; a problem's place doesn't name them."""


def one_or_several(value: Any) -> str:
    """The tag of a value of such a key."""
    return SEVERAL if isinstance(value, list | tuple) else ONE


LONGEST_SHOWN = 200
"""Characters of a value, or of a key, that an error repeats."""

STORED = {"stored": True}
"""The context in which a study that a database holds is read: what was accepted once is not looked
up again, so that a study can be watched where its plug-ins are not."""


def is_stored(info: ValidationInfo) -> bool:
    """Whether a validator sees what a database holds."""
    return info.context == STORED


def checked(kind: type[Table], values: Mapping[str, Any]) -> Table:
    """A table of these values. Raises ConfigError with every problem, one a line."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [in_words(dict(problem), kind) for problem in error.errors()]
        raise ConfigError("\n".join(map(one_line, problems))) from error


def in_words(problem: Mapping[str, Any], root: type[Section]) -> str:
    """One pydantic problem as `key = value; rule`, with the nearest name for an unknown key."""
    key = ".".join(str(part) for part in problem["loc"] if part not in (ONE, SEVERAL))
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "extra_forbidden":
        last = str(problem["loc"][-1])[:LONGEST_SHOWN]  # the comparison takes the square of it
        near = difflib.get_close_matches(last, _keys(problem["loc"][:-1], root), n=1)
        return f"{key} is not a known key" + (f"; did you mean {near[0]!r}?" if near else "")
    rule = str(problem["msg"]).removeprefix("Value error, ")
    rule = rule.replace("Input should be", "expected", 1)
    rule = rule.replace("greater than or equal to", "at least").replace(
        "less than or equal to", "at most"
    )
    given = problem["input"]
    if not key:
        return rule
    here = f"{key} = {shown(given, LONGEST_SHOWN)}; "
    return f"{key}: {rule}" if isinstance(given, dict) else here + rule.removeprefix(here)


def unreadable(error: Exception) -> str:
    """Why a stored value can't be read, in a line and without the value, which may be anything."""
    if not isinstance(error, ValidationError):
        return in_one_line(error)
    first = error.errors()[0]
    where = ".".join(map(str, (error.title, *first["loc"])))
    return first_line(ValueError(f"{where}: {first['msg']}"))


def _keys(place: Iterable[str | int], root: type[Section]) -> list[str]:
    """The known keys of the table at `place`."""
    table: Any = root
    for part in place:
        if isinstance(part, str):
            field = table.model_fields.get(part)
            table = field.annotation if field else None
        if not (isinstance(table, type) and issubclass(table, Section)):
            return []
    return list(table.model_fields)
