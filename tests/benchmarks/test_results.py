import json
import xml.etree.ElementTree as ET

import pytest

from benchmarks.record import new_record, value_text, verdict_text
from benchmarks.results import obstacles, results_page
from benchmarks.row import Budget, Measurement, Row
from benchmarks.run import Result
from benchmarks.write import write_results


def result(name, status, value=None, **changes):
    row = Row(name=name, path="pure", target=2.0, measure=lambda budget: None, obstacle="The products.")
    found = None
    if value is not None:
        found = Measurement(
            value=value,
            per_round=(value - 0.1, value + 0.1),
            seconds={"reference": 0.004, "ours": 0.002},
            gate="losses within 1e-6",
            about={"shape": "4 x 200"},
        )
    return Result(row=row, status=status, measurement=found, **changes)


@pytest.fixture
def record():
    results = [
        result("step", "met", 2.345678),
        result("decode", "missed", 1.5, profile="aten::mm 60%"),
        result("gpu step", "not measured", reason="there is no GPU here"),
        result("mask", "failed", reason="AssertionError: they differ"),
    ]
    return new_record(results, Budget(rounds=2), "python -m benchmarks")


def test_the_record_is_plain_data_with_machine_and_versions(record):
    again = json.loads(json.dumps(record))
    assert again == record
    assert record["rows"][0]["value"] == 2.346
    assert record["products"]["float32_precision"]
    assert record["versions"]["torch"]


def test_a_row_in_words(record):
    step, decode, gpu, mask = record["rows"]
    assert value_text(step) == "2.35 [2.25, 2.45]"
    assert verdict_text(decode) == "misses by 25%"
    assert decode["obstacle"] == "The products. Of its time: aten::mm 60%."
    assert obstacles(record) == ["step, pure: The products.", f"decode, pure: {decode['obstacle']}"]
    assert verdict_text(gpu) == "not measured: there is no GPU here"
    assert verdict_text(mask) == "failed: AssertionError: they differ"
    assert value_text(mask) == "–"


def test_the_page_says_what_was_measured_and_shows_the_figures(record, tmp_path):
    points = [
        {"at": at, "seconds": {"reference": at, "LearnedDropout": at / 2}, "saved_bytes": {"reference": at}}
        for at in (64, 128)
    ]
    record["growth"] = {"width": {"about": "2 blocks", "points": points}}
    page = write_results(tmp_path / "new", record)
    text = page.read_text()
    assert "| decode | pure | ≥ 2 | 1.5 [1.4, 1.6] | misses by 25% |" in text
    assert "- decode, pure: The products. Of its time: aten::mm 60%." in text
    assert "shape 4 x 200; checked: losses within 1e-6; reference 4 ms, ours 2 ms." in text
    for name in ("ratios.svg", "growth.svg"):
        assert f"({name})" in text
        assert ET.parse(page.parent / name).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("platform", "told"), [("Linux-6.1-x86_64-with-glibc2.36", True), ("macOS-15", False)]
)
def test_kept_memory_is_told_where_it_can_be_kept(record, platform, told):
    record["machine"]["platform"] = platform
    assert ("mallopt" in results_page(record, [])) == told


def test_figures_are_the_same_bytes_for_the_same_record(record, tmp_path):
    first, second = (write_results(tmp_path / name, record).parent / "ratios.svg" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_without_a_value_there_is_no_figure(tmp_path):
    record = new_record([result("gpu step", "not measured")], Budget(), "python -m benchmarks")
    page = write_results(tmp_path, record)
    assert ".svg" not in page.read_text()
