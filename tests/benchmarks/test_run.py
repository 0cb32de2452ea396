import pytest
import torch

from benchmarks import run as run_module
from benchmarks.row import Budget, Measurement, Row
from benchmarks.run import chosen_rows, run_rows
from transformer_dropout import InputError
from transformer_dropout.kernels._native import PURE


def row(name="step", path="pure", target=2.0, value=3.0, **changes):
    return Row(
        name=name,
        path=path,
        target=target,
        **{"measure": lambda budget: Measurement(value=value, gate="equal"), **changes},
    )


def one(row):
    (result,) = run_rows([row], Budget(), lambda result: None)
    return result


def test_a_value_is_held_against_its_target_from_the_right_side():
    assert one(row(value=2.0)).status == "met"
    assert one(row(value=1.9)).status == "missed"
    assert one(row(value=1.9, at_least=False)).status == "met"
    assert one(row(value=2.1, at_least=False)).status == "missed"


def test_a_row_that_breaks_leaves_the_others():
    def broken(budget):
        raise AssertionError("they differ by 3")

    told = []
    results = run_rows([row(measure=broken), row()], Budget(), told.append)
    assert [result.status for result in results] == ["failed", "met"]
    assert results[0].reason == "AssertionError: they differ by 3"
    assert told == results


def test_pure_rows_run_without_native_code():
    seen = []

    def look(budget):
        seen.append(PURE.get())
        return Measurement(value=9.0, gate="")

    run_rows(
        [row(path="pure", measure=look), row(path="native", measure=look)], Budget(), lambda result: None
    )
    assert seen[0] is True
    assert seen[1:] in ([], [False])


def test_what_a_row_lacks_is_said(monkeypatch):
    monkeypatch.setattr(run_module, "numba_installed", lambda: False)
    result = one(row(path="native"))
    assert result.status == "not measured"
    assert "pip install" in result.reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_gpu_rows_are_not_measured_without_one():
    assert one(row(path="gpu")).reason == "there is no GPU here"


@pytest.mark.parametrize(
    ("value", "obstacle", "profiled"),
    [(1.0, "", True), (3.0, "", False), (3.0, "The products.", True)],
)
def test_a_row_that_misses_or_says_what_is_in_its_way_is_profiled(value, obstacle, profiled):
    x = torch.randn(200, 200)
    measured = Measurement(value=value, gate="", action=lambda: x @ x)
    result = one(row(measure=lambda budget: measured, obstacle=obstacle))
    assert ("mm" in result.profile and "%" in result.profile) is profiled


def test_rows_are_chosen_by_pattern_and_a_wrong_one_lists_them():
    rows = [row("mask, 10 x 10"), row("mask, 10 x 10", path="native"), row("decode")]
    assert chosen_rows(rows, []) == rows
    assert chosen_rows(rows, ["mask*"]) == rows[:2]
    assert chosen_rows(rows, ["*, native", "decode"]) == rows[1:]
    with pytest.raises(InputError, match=r"'maks\*'.*mask, 10 x 10; decode"):
        chosen_rows(rows, ["maks*"])
