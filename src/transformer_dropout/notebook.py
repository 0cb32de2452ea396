"""Tables that a notebook shows."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as HTML, every text escaped; None is an empty cell.

    Args:
        caption: what stands above it.
        columns: the headings.
        rows: as many cells each.
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return (
        f'<table><caption style="text-align:left">{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def cell(value: object) -> str:
    """Return one cell; lines stay apart."""
    text = "" if value is None else escape(str(value)).replace("\n", "<br>")
    return f'<td style="text-align:left">{text}</td>'
