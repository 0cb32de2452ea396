"""The site builds strictly, with every public name, figure and notebook in it; and the notebooks run."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import transformer_dropout as td

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def build(folder, environment, config="mkdocs.yml"):
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d", str(folder)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_holds_what_it_should(environment, tmp_path):
    done = build(tmp_path / "site", environment)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
    names = [name for name in td.__all__ if isinstance(getattr(td, name), type | type(build))]
    assert len(names) > 40
    missing = [name for name in names if f'.{getattr(td, name).__qualname__}"' not in reference]
    assert missing == []
    gallery = (tmp_path / "site" / "gallery" / "index.html").read_text(encoding="utf-8")
    assert all(f"figures/{file.name}" in gallery for file in (DOCS / "figures").glob("*.svg"))
    for file in NOTEBOOKS:
        page = (tmp_path / "site" / "notebooks" / file.stem / "index.html").read_text(encoding="utf-8")
        assert "transformer_dropout" in page


@pytest.fixture(scope="module")
def runner():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        yield importlib.import_module("make_notebooks").run


@pytest.fixture(scope="module")
def pages():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        yield importlib.import_module("site_pages")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # raised in libraries
@pytest.mark.parametrize(
    "file",
    # A comparison is a process for each arm and seed.
    [pytest.param(f, marks=[pytest.mark.slow] if "compare" in f.stem else []) for f in NOTEBOOKS],
    ids=lambda file: file.stem,
)
def test_a_notebook_runs_from_its_first_cell_to_its_last(runner, file):
    ran, kept = runner(file), json.loads(file.read_text(encoding="utf-8"))
    for now, before in zip(ran["cells"], kept["cells"], strict=True):
        # What is kept beside the code was printed by it; numbers may differ elsewhere.
        assert bool(now.get("outputs")) == bool(before.get("outputs"))


def test_a_public_name_without_a_docstring_stops_the_site(pages, monkeypatch):
    monkeypatch.setattr(td.L2, "__doc__", None)
    monkeypatch.setattr(td, "__all__", ["L2"])
    monkeypatch.setattr(pages.inspect, "getdoc", lambda value: value.__doc__)
    with pytest.raises(pages.PluginError, match=r"transformer_dropout\.L2 has no docstring"):
        list(pages.public_names())


def test_a_link_out_of_the_pages_is_named_by_its_place_and_a_broken_one_stops_the_site(pages):
    page = type("Page", (), {"file": type("File", (), {"src_uri": "speed.md"})})

    def placed(words):
        return pages.on_page_markdown(words, page, None, None)

    assert placed("see [the table](../benchmarks/RESULTS.md).") == "see the table (`benchmarks/RESULTS.md`)."
    assert placed("see [native](native.md#why)") == "see [native](native.md#why)"
    with pytest.raises(pages.PluginError, match="is not there"):
        placed("see [nothing](../nothing.md)")
