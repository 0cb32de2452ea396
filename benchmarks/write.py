"""Write the record of a benchmark, its page and its figures into a folder."""

from pathlib import Path
from typing import Any

from transformer_dropout.runs.files import write_atomically, write_json

from .plots import growth_figure, ratios_figure
from .results import results_page


def write_results(folder: Path, record: dict[str, Any]) -> Path:
    """Write ``record.json``, ``RESULTS.md`` and the figures; return the path of the page.

    Args:
        folder: made if it is missing.
        record: of one benchmark.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "record.json", record)
    drawn = {"ratios.svg": ratios_figure(record), "growth.svg": growth_figure(record)}
    figures = {name: text for name, text in drawn.items() if text is not None}
    for name, text in figures.items():
        write_atomically(folder / name, text)
    page = folder / "RESULTS.md"
    write_atomically(page, results_page(record, figures))
    return page
