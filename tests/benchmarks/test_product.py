"""The row of a single product."""

import pytest

from benchmarks import product
from benchmarks.row import Budget


def test_both_products_are_checked_before_they_are_timed(monkeypatch):
    monkeypatch.setattr(product, "ROWS_OF_X", 64)
    measured = product.product_ratio(Budget(rounds=1, quick=True))
    assert measured.value > 0 and "equal within" in measured.gate
    monkeypatch.setattr(product.F, "linear", lambda x, weight, bias: x @ weight.t() + 1.1 * bias)
    with pytest.raises(AssertionError, match="differ by"):
        product.product_ratio(Budget(rounds=1, quick=True))
