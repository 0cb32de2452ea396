"""All rows, in the order of the table."""

from . import mask_operation
from .row import Row

ROOMS = (mask_operation,)


def all_rows() -> list[Row]:
    """Return every row."""
    return [row for room in ROOMS for row in room.ROWS]
