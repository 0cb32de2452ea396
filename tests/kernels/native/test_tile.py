"""The hand-written tile equals the product that its formula says."""

import numpy as np
import pytest

pytest.importorskip("numba")

import numba

from benchmarks.native_loops import plain_tile
from transformer_dropout.kernels.native.tile import VECTOR, tile

ROWS, COUNT = 8, 5
KINDS = {
    "hand-written": lambda vectors: tile(ROWS, vectors),
    "loops": lambda vectors: plain_tile(ROWS, vectors * VECTOR),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_tile_is_the_product_of_a_part_of_each_matrix(kind, vectors, fresh):
    product, width = KINDS[kind](vectors), vectors * VECTOR
    random = np.random.default_rng(0)
    left, right, out = (
        random.standard_normal((rows, columns), dtype=np.float32)
        for rows, columns in ((ROWS + 2, COUNT + 3), (COUNT + 1, width + 7), (ROWS + 1, width + 4))
    )

    @numba.njit
    def run(a, b, c):
        # From row 1 and column 2 of the left, column 3 of the right, row 1 of the result.
        a_step, b_step, c_step = left.shape[1], right.shape[1], out.shape[1]
        product(a, a_step + 2, a_step, 1, b, 3, b_step, COUNT, c, c_step, c_step, fresh)

    found = out.copy()
    run(left.reshape(-1), right.reshape(-1), found.reshape(-1))
    expected = left[1 : ROWS + 1, 2 : COUNT + 2].astype(float) @ right[:COUNT, 3 : width + 3]
    expected += 0 if fresh else out[1:, :width]
    np.testing.assert_allclose(found[1:, :width], expected, atol=1e-5)
    # Nothing beside the tile is written.
    assert np.array_equal(found[0], out[0]) and np.array_equal(found[1:, width:], out[1:, width:])
