"""Budgets stay exact and nothing is lost, whatever happens to workers, connections and server."""

from pathlib import Path

import pytest

from tests.support.faults import ordeal

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("database", "stop_below"), [("sqlite", 0.05), ("postgresql", 0.0), ("pgbouncer", 0.0)]
)
def test_under_faults_nothing_is_lost_and_nothing_done_twice(
    tmp_path: Path, database: str, stop_below: float
) -> None:
    """1,000 faults: python -m tests.support.faults; the table is in docs/explanation/service.md."""
    result = ordeal.run(database, 25, 7, tmp_path, stop_below=stop_below)
    assert result["wrong"] == []
    assert sum(result["faults"].values()) == 25
    if stop_below:
        assert result["stopped"] > 0
    else:
        assert result["images"] == 6 * result["trials"]
    # Each fault costs at most the batch that each of the workers had in hand.
    assert result["made again"] <= 25 * 2 * ordeal.WORKERS
