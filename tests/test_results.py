"""The page of results is what the records give, and its figures in words stand in its tables."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def make_results():
    sys.path.insert(0, str(DOCS))
    try:
        spec = importlib.util.spec_from_file_location("make_results", DOCS / "make_results.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["make_results"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(DOCS))


def test_the_page_and_its_figure_are_made_from_the_records(make_results):
    words = (DOCS / "results.md").read_text(encoding="utf-8")
    assert make_results.filled(words) == words
    assert make_results.figure() == (DOCS / "figures" / "results.svg").read_text(encoding="utf-8")


def test_every_committed_comparison_with_an_arm_without_regularizer_is_on_the_page(make_results):
    records = DOCS.parent / "experiments"
    there = {str(file.parent.relative_to(records)) for file in records.rglob("comparison.json")}
    shown = {setting.folder for setting in make_results.SETTINGS}
    # Fine-tuning by an earlier command has a page of its own; skipped blocks have a dense twin, not a none.
    elsewhere = {"block_dropout", "fine_tuning/all", "fine_tuning/few", "published", "depth"}
    others = there - shown - elsewhere
    words = (DOCS / "results.md").read_text(encoding="utf-8")
    # What was tuned, and what is claimed, each have a table of their own.
    for folder in others:
        kind, _, name = folder.rpartition("/")
        assert f"<!-- {'tuned_' if kind == 'tuned' else ''}{name} of make_results.py -->" in words


def test_the_figures_in_words_stand_in_the_tables():
    words = (DOCS / "results.md").read_text(encoding="utf-8")
    tables = "".join(re.findall(r"make_results\.py -->(.*?)<!-- end", words, flags=re.DOTALL))
    prose = re.sub(r"<!-- \w+ of make_results\.py -->.*?<!-- end -->", "", words, flags=re.DOTALL)
    named = re.findall(r"\d+\.\d{3}|\d{3} steps|\b875\b|\b458\b|\d+ %", prose)
    assert len(named) >= 4
    for figure in named:
        assert figure.removesuffix(" steps") in tables or figure == "95 %", figure


def test_what_is_told_of_fine_tuning_a_dense_model_is_the_last_column_of_its_tables(make_results):
    decoder, encoder = (
        [int(row.split("|")[-2].strip(" %")) for row in make_results.kept_over_time(folder).splitlines()[2:]]
        for folder in ("causal_lm", "sentences")
    )
    *others, last = encoder
    told = (
        f"the decoder keeps {min(decoder)} to {max(decoder)} % and every layer of the encoder but its last "
        f"{min(others)} to {max(others)} %; the last one closes to {last} %"
    )
    assert told in (DOCS / "results.md").read_text(encoding="utf-8")
