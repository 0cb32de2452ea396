"""Write the numbers and figures of the pages on why things work: ``python docs/make_pages.py [ridge ...]``.

A page is ``pages/NAME.md``; ``pages/NAME.py`` beside it measures what it says and draws ``pages/NAME.svg``.
The numbers stand between two marks on the page.
"""

import re
import sys
from importlib import import_module
from pathlib import Path

import torch

PAGES = Path(__file__).with_name("pages")
MARKS = re.compile(r"(<!-- numbers of \w+\.py -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def with_numbers(page: str, table: str) -> str:
    """Return a page with a table between its marks."""
    return MARKS.sub(lambda found: found[1] + table + "\n" + found[2], page)


def make(name: str) -> None:
    """Measure what a page says and write its numbers and its figure."""
    module = import_module(f"pages.{name}")
    found = module.measure()
    file = PAGES / f"{name}.md"
    file.write_text(with_numbers(file.read_text(encoding="utf-8"), module.table(found)), encoding="utf-8")
    file.with_suffix(".svg").write_text(module.figure(found), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for page in sys.argv[1:] or sorted(file.stem for file in PAGES.glob("*.md")):
        make(page)
