"""The generated table of families."""

import sys
from pathlib import Path

import pytest

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import FAMILIES, tiny_model
from transformer_dropout.integrations import family_table as table

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def rows_of(page):
    lines = [line for line in page.splitlines() if line.startswith("| ")][2:]
    return {
        cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    }


def test_a_family_that_has_everything():
    (cells,) = rows_of(table.family_table(["llama"])).values()
    assert cells == ["7 of 7", "7 of 7", "yes", "yes", "yes"]


def test_what_is_not_reached_has_a_note(monkeypatch):
    monkeypatch.setattr(table, "missing_kinds", lambda model: {"block": "it has none"})
    page = table.family_table(["llama"])
    assert rows_of(page)["llama"][:2] == ["6 of 7 (note 1)", "6 of 6"]
    assert "1. llama, block: it has none." in page


def test_a_place_that_takes_a_rate_only_has_a_note():
    page = table.family_table(["mpt"])
    assert rows_of(page)["mpt"][:2] == ["7 of 7 (note 1)", "7 of 7"]
    assert "1. mpt, attention_weights: its own code drops there" in page


@pytest.mark.slow
def test_every_family_and_the_page_that_is_stored():
    page = table.family_table()
    assert tuple(rows_of(page)) == FAMILIES
    for family, cells in rows_of(page).items():
        assert cells[2:] == ["yes"] * 3, family
        assert cells[0].startswith("7 of 7")
        assert cells[1] == "7 of 7"
    # The versions in the introduction may differ.
    assert rows_of(PAGE.read_text(encoding="utf-8")) == rows_of(page)


def test_what_does_not_hold_is_said_with_a_note(monkeypatch):
    class Unmoved:
        def update(self, rates):
            pass

    monkeypatch.setattr(table, "set_rates", lambda model, rates: Unmoved())
    assert not table.rate_is_effective(tiny_model("llama"), "block")
    notes = []
    assert table.said(False, "two forwards differ.", "x", notes) == "no (note 1)"
    assert table.counted(5, 7, ["a", "b"], notes) == "5 of 7 (note 2, note 3)"
    assert notes == ["x: two forwards differ.", "a", "b"]


def test_each_check_can_fail(monkeypatch):
    silent = tiny_model("llama")
    assert table.variance_is_seen(silent)[0] is False
    loud = tiny_model("llama", attention_dropout=0.4)
    assert table.disabled_is_exact(loud)[0]

    def refuse(model):
        raise td.InputError("It cannot be.")

    monkeypatch.setattr(table, "disabled", refuse)
    assert table.disabled_is_exact(loud) == (False, "It cannot be.")
    monkeypatch.setattr(td.Regularization, "remove", lambda handle: None)
    assert not table.remove_is_exact(loud, ["mlp_output"])[0]


def test_the_module_writes_the_page(monkeypatch, capsys):
    import runpy

    monkeypatch.setattr("transformer_dropout.audit.tiny_models.FAMILIES", ("llama",))
    monkeypatch.delitem(sys.modules, table.__name__)
    runpy.run_module(table.__name__, run_name="__main__")
    assert "| llama | 7 of 7 |" in capsys.readouterr().out
