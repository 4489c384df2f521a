"""Tables as Markdown or JSON, as the commands of this folder print them."""

import json
from collections.abc import Mapping
from typing import Any

Table = list[dict[str, Any]]


def show(tables: Mapping[str, Table], *, as_json: bool = False) -> None:
    """Prints {title: rows}; a table has every column that one of its rows has."""
    if as_json:
        print(json.dumps(tables, indent=2))
        return
    for title, rows in tables.items():
        if not rows:
            continue
        columns = list(dict.fromkeys(column for row in rows for column in row))
        print(f"\n{title}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        for row in rows:
            cells = [row.get(column, "") for column in columns]
            shown = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
            print(f"| {' | '.join(shown)} |")
