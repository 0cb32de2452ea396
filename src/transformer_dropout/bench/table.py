"""All rows, in the order of the table."""

from . import block_mlp, decoding, gpu, mask_operation, row_skipping, training_step
from .row import Row

ROOMS = (training_step, mask_operation, decoding, row_skipping, block_mlp, gpu)


def all_rows() -> list[Row]:
    """Return every row."""
    return [row for room in ROOMS for row in room.ROWS]
