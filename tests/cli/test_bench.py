"""``dropout bench``: timings in a table, a page and a record."""

import json
from dataclasses import replace

import torch

from transformer_dropout.bench import mask_operation, table


def test_chosen_rows_end_in_a_page_and_a_record(start, tmp_path):
    process = start(
        "bench", "--quick", "--row", "bytes*", "--row", "*GPU*", "--no-growth", "--out", "timings"
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    folder = tmp_path / "timings"
    record = json.loads((folder / "record.json").read_text())
    assert str(folder / "RESULTS.md") in out
    assert "oneDNN" in out
    statuses = {row["name"]: row["status"] for row in record["rows"]}
    assert statuses["bytes the mask keeps for its backward, an element"] == "met"
    assert record["command"].startswith("dropout bench --quick")
    assert record["machine"]["threads"] == 1
    assert "| bytes the mask keeps for its backward, an element | pure | ≤ 1 | 1 | met |" in (
        (folder / "RESULTS.md").read_text()
    )


def test_a_target_that_is_missed_comes_with_what_is_in_its_way(here, monkeypatch):
    row = next(row for row in mask_operation.ROWS if "bytes" in row.name)
    monkeypatch.setattr(table, "all_rows", lambda: [replace(row, target=0.5, obstacle="One byte.")])
    threads = torch.get_num_threads()
    result = here("bench", "--quick", "--no-growth", "--out", "timings")
    torch.set_num_threads(threads)
    assert result.code == 0
    assert "In the way of bytes the mask keeps for its backward, an element, pure: One byte." in " ".join(
        result.out.split()
    )


def test_a_row_that_is_none_is_refused_and_nothing_is_written(start, tmp_path):
    process = start("bench", "--row", "maks*", "--out", "timings")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert "No row matches 'maks*'; the rows are: training step" in err
    assert not (tmp_path / "timings").exists()
