"""How values show themselves in a notebook: small tables, where nothing of a user's is markup."""

from collections.abc import Iterable, Sequence
from html import escape


def table(caption: str, rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """An HTML table; the first cell of a row is its heading."""
    lines = [f"<table><caption>{escape(caption)}</caption>"]
    if head:
        lines.append("<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>")
    for first, *cells in rows:
        told = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><th>{escape(first)}</th>{told}</tr>")
    return "".join([*lines, "</table>"])
