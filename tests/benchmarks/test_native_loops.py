"""The rows of the native loops, and that each is worth its code in the committed record."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("numba")

from benchmarks import native_loops
from benchmarks.row import Budget

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "native.md").read_text(encoding="utf-8")
RECORD = json.loads((ROOT / "benchmarks" / "native" / "record.json").read_text(encoding="utf-8"))
GAINS = {row["name"]: row["value"] for row in RECORD["rows"]}


@pytest.mark.parametrize("name", ["dropout, float32", "attention, bfloat16", "kept columns", "mask, float32"])
def test_a_loop_is_checked_against_its_plain_function_before_it_is_timed(name):
    torch.manual_seed(0)
    build, _ = native_loops.LOOPS[name]
    measured = native_loops.loop_ratio(Budget(rounds=1, quick=True), build=build, calls=1)
    assert "equal within" in measured.gate


def test_a_loop_that_computes_something_else_is_not_timed(monkeypatch):
    values = itertools.count(1)
    monkeypatch.setattr(native_loops, "kept_rows", lambda *tensors: torch.full((2048,), next(values)))
    with pytest.raises(AssertionError, match="differs from the plain function"):
        native_loops.loop_ratio(Budget(rounds=1, quick=True), build=native_loops.rows, calls=1)


def test_every_loop_gains_what_its_code_costs():
    assert GAINS.keys() == {row.name for row in native_loops.ROWS}
    assert min(GAINS.values()) >= native_loops.LEAST


def test_the_page_says_what_the_record_says():
    rows = re.findall(r"^\| (native loop, .*?) \| (\S+) \|$", PAGE, flags=re.M)
    assert {name: float(gain) for name, gain in rows} == {
        name: float(f"{g:.2g}") for name, g in GAINS.items()
    }


def test_the_page_names_every_file_and_tests_that_exist():
    folder = ROOT / "src" / "transformer_dropout" / "kernels" / "native"
    files = {file.stem for file in folder.glob("*.py")} - {"__init__", "_compiled"}
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.M)) == files
    for test in re.findall(r"`(tests/\S+\.py)`", PAGE):
        assert (ROOT / test).is_file(), test
