"""All rows, in the order of the table."""

from . import (
    audit_cost,
    beside_others,
    block_mlp,
    decoding,
    gpu,
    hugging_face,
    mask_operation,
    native_loops,
    peak_memory,
    plain_dropout,
    precomputed_masks,
    product,
    row_skipping,
    small_model,
    training_step,
    tuned_steps,
)
from .row import Row

ROOMS = (
    product,
    training_step,
    small_model,
    plain_dropout,
    beside_others,
    hugging_face,
    peak_memory,
    mask_operation,
    decoding,
    row_skipping,
    block_mlp,
    native_loops,
    audit_cost,
    tuned_steps,
    precomputed_masks,
    gpu,
)


def all_rows() -> list[Row]:
    """Return every row."""
    return [row for room in ROOMS for row in room.ROWS]
