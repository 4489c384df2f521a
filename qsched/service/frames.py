"""A study's trials as a pandas data frame."""

from typing import TYPE_CHECKING, Any

from qsched.errors import ConfigError
from qsched.service.queue import scores_by_slot

if TYPE_CHECKING:
    from pandas import DataFrame

    from qsched.service.stored_study import StoredStudy


def trials_of(study: "StoredStudy") -> "DataFrame":
    """A row a trial of the budget, by its number: state, value, gain over the identity, what was
    searched by name, the scorers' means and the seconds it took; what isn't known yet is missing.

    Raises ConfigError where pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ConfigError("trials_dataframe needs pandas: pip install pandas") from error
    slots, names = study.slots(), study.definition.parametrisation.names
    scores = study.storage.database.transaction(
        lambda session: scores_by_slot(session, study.incarnation)
    )
    identity = slots[0].value if slots else None
    rows: list[dict[str, Any]] = []
    for slot in slots:
        row: dict[str, Any] = {"trial": slot.number, "state": slot.state, "value": slot.value}
        known = slot.value is not None and identity is not None
        row["gain"] = slot.value - identity if known else None  # type: ignore[operator]
        row |= dict.fromkeys(names) | dict(zip(names, slot.vector or (), strict=False))
        found = scores.get(slot.number)
        rows.append(row | (study.attributes(found) if found else {}))
    return pandas.DataFrame(rows).set_index("trial")
