"""A CSV as columns of numbers."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError, did_you_mean

DELIMITERS = ",;\t"


@dataclass(frozen=True, kw_only=True)
class NumberTable:
    """Numbers by column.

    Attributes:
        columns: the names in the first line.
        values: (rows, columns) float64.
    """

    columns: tuple[str, ...]
    values: np.ndarray

    def of(self, names: tuple[str, ...]) -> np.ndarray:
        """Return some of the columns, in this order."""
        return self.values[:, [self.columns.index(name) for name in names]]


def read_table(path: Path, wanted: tuple[str, ...] | None = None) -> NumberTable:
    """Read a CSV whose first line names the columns, separated by commas, semicolons or tabs.

    Args:
        path: the file.
        wanted: the columns to read; None reads all, and all are to be numbers.

    Raises:
        InputError: for a file that cannot be read so; the message names line and column.
    """
    header, rows = lines_of(path)
    wanted = header if wanted is None else wanted
    for name in wanted:
        if name not in header:
            raise InputError(f"{path} has no column {name!r}.{did_you_mean(name, header)}")
    places = [header.index(name) for name in wanted]
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path}, line {line}: it has {len(row)} values, but the first line names {len(header)} "
                "columns."
            )
    values = [[number(row[at], f"{path}, line {line}, {header[at]}") for at in places] for line, row in rows]
    return NumberTable(columns=tuple(wanted), values=np.array(values, dtype=np.float64))


def lines_of(path: Path) -> tuple[tuple[str, ...], list[tuple[int, list[str]]]]:
    """Return the names of the columns, and each row with its line number."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"data.source: {path} cannot be read ({error.strerror}); give a CSV.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text in UTF-8; save it as a CSV in UTF-8.") from None
    first = text.partition("\n")[0]
    reader = csv.reader(text.splitlines(), delimiter=max(DELIMITERS, key=first.count))
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}.") from None
    if len(rows) < 2:
        raise InputError(f"{path} has no rows under a first line with the names of the columns.")
    header = tuple(rows[0][1])
    twice = {name for name in header if header.count(name) > 1}
    if twice or "" in header:
        what = f"names {sorted(twice)[0]!r} twice" if twice - {""} else "has a column without a name"
        raise InputError(f"{path}: its first line {what}; give each column a name of its own.")
    return header, rows[1:]


def number(text: str, place: str) -> float:
    """Return a cell's number; raise InputError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(
            f"{place}: {text!r} is no number; leave out the row, or name the columns to use: "
            "--set data.columns='[...]'"
        )
    return value
