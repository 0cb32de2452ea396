"""The row of a single product."""

import json
from pathlib import Path

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


ROOT = Path(__file__).parents[2]


def recorded(folder):
    """Return the values of a record's rows in their order."""
    record = json.loads((ROOT / folder / "record.json").read_text(encoding="utf-8"))
    return {(row["name"], row["path"]): row.get("value") for row in record["rows"]}


def test_the_page_on_speed_says_what_the_records_say():
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    value = recorded("benchmarks")[product.ROWS[0].name, "pure"]
    assert f"PyTorch's product takes {value:.3g} times oneDNN's" in page
    pure, native, *_ = recorded("benchmarks/earlier_code").values()
    assert f"gives {pure:.3g} and {native:.3g} for the first two training rows" in page
