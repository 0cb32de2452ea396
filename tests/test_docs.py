"""The pages on layers, schedules and penalties: every layer has one, and what it shows is what happens."""

import importlib
import re
from pathlib import Path

import pytest
import torch

import transformer_dropout as td
from transformer_dropout import layers
from transformer_dropout.sites import KINDS
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

DOCS = Path(__file__).parents[1] / "docs"
LAYER_PAGES = [page for page in sorted((DOCS / "layers").glob("*.md")) if page.stem != "README"]
OTHER = [
    "averaging",
    "block_dropout",
    "held_out",
    "learned_dropout",
    "losses",
    "mixout",
    "mixture_of_experts",
    "neftune",
    "penalties",
    "schedules",
    "token_noise",
]
OTHER_PAGES = [DOCS / f"{name}.md" for name in OTHER]
PAGES = [*LAYER_PAGES, *OTHER_PAGES, DOCS / "layers" / "README.md"]
SAYS = {
    "better": "better than dropout",
    "worse": "worse than dropout",
    "no difference": "no difference shown",
}


def words_of(page):
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def make():
    """The script that draws the figures and fills in the rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        yield importlib.import_module("make")


def scope():
    """Return what the code on a page may use."""
    torch.manual_seed(0)
    model = Decoder(20, DecoderConfig(width=16, heads=4, blocks=2, context=8)).train()
    tokens = torch.randint(20, (3, 9))
    optimizer = torch.optim.AdamW(td.weight_decay_groups(model, 0.1))
    found = {"td": td, "model": model, "tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    return found | {"optimizer": optimizer}


def run_code(page):
    """Run the code of a page and return what it leaves."""
    found = scope()
    (code,) = re.findall(r"```python\n(.*?)```", words_of(page), flags=re.DOTALL)
    exec(code, found)
    return found


def places(page):
    """Return the kinds of places that a page says a layer is accepted at, and refused at."""
    accepted, refused = set(), set()
    for label, line in re.findall(
        r"^\* (Made for|Also accepted|Refused): ([^.:]*)", words_of(page), flags=re.M
    ):
        named = set(re.findall(r"`(\w+)`", line)) & set(KINDS)
        (refused if label == "Refused" else accepted).update(named)
    return accepted, refused


@pytest.mark.parametrize("name", layers.__all__)
def test_every_layer_has_a_page_and_is_in_the_list(name):
    stem = getattr(layers, name).__module__.rpartition(".")[2]
    assert any(folder.joinpath(f"{stem}.md").exists() for folder in (DOCS, DOCS / "layers"))
    assert f"| [{name}](" in words_of(DOCS / "layers" / "README.md")


@pytest.mark.parametrize("page", LAYER_PAGES, ids=lambda page: page.stem)
def test_a_page_of_a_layer_stands_where_its_file_does_and_has_its_figure(page):
    modules = {getattr(layers, name).__module__.rpartition(".")[2]: name for name in layers.__all__}
    assert words_of(page).startswith(f"# {modules[page.stem]}\n")
    assert f"](../figures/{page.stem}.svg)" in words_of(page)
    recorded = re.search(r"^<!-- from experiments/[\w/]+: .*; (.+) -->$", words_of(page), flags=re.M)
    assert recorded or words_of(page).endswith("\n## Evidence\n\nIn no record yet.\n")
    assert 25 <= len(words_of(page).splitlines()) <= 50


def test_the_figures_are_what_the_layers_do(make):
    # The picture of the results comes from the records; tests/test_results.py holds it.
    assert {file.stem for file in (DOCS / "figures").glob("*.svg")} == {"results", *make.FIGURES}
    for name, draw in make.FIGURES.items():
        file = DOCS / "figures" / f"{name}.svg"
        assert draw() == words_of(file), f"{file.name} is out of date: python docs/make.py"
        assert file.stat().st_size < 60_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_evidence_is_what_the_records_say(make, page):
    assert make.with_rows(words_of(page)) == words_of(page), "python docs/make.py"


def test_evidence_that_differs_from_the_record_is_noticed(make):
    page = words_of(DOCS / "layers" / "drop_path.md")
    (row,) = re.findall(r"^\| DropPath .*$", page, flags=re.M)
    (sentence,) = re.findall(r"^\* DropPath .*$", page, flags=re.M)
    for shown in (row, sentence):
        changed = page.replace(shown, re.sub(r"\d\.\d", "9.9", shown))
        assert changed != page and make.with_rows(changed) == page


@pytest.mark.parametrize("page", [*LAYER_PAGES, *OTHER_PAGES], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page):
    found = run_code(page)
    if "regularization" in found:
        loss = found["model"](found["tokens"], found["targets"]) + found["regularization"].penalty()
        loss.backward()
        assert loss.isfinite()


@pytest.mark.parametrize("page", LAYER_PAGES, ids=lambda page: page.stem)
def test_a_layer_is_accepted_and_refused_where_its_page_says(page):
    rule = run_code(page)["recipe"].rules[0]
    accepted, refused = places(page)
    assert accepted and not accepted & refused
    for kind in sorted(accepted | refused):
        found = scope()
        recipe = td.Recipe([td.Rule(kind, rule.layer, p=rule.p, **rule.arguments)])
        if kind in refused:
            with pytest.raises(td.InputError):
                apply(found, recipe)
        else:
            apply(found, recipe)


def apply(found, recipe):
    td.regularize_(found["model"], recipe)
    found["model"](found["tokens"])


def test_schedules_are_written_in_run_configs_as_the_page_says():
    rows = re.findall(r"^\| `(\w+)\(.*\)` \|.*\| `(.+)` \|$", words_of(DOCS / "schedules.md"), flags=re.M)
    assert len(rows) == 8
    for name, written in rows:
        rule = f"- {{select: mlp_output, layer: Dropout, p: {written}}}"
        assert type(td.Recipe.from_yaml(rule).rules[0].p) is getattr(td, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_that_is_linked_exists(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", words_of(page)):
        assert (page.parent / target).exists(), target


RELIABILITY = DOCS / "reliability.md"
MUTATION = DOCS.parent / "experiments" / "mutation"


def test_every_promise_names_a_test_that_is_there():
    promises, _, rest = words_of(RELIABILITY).partition("## What is not promised")
    lines = [line for line in promises.splitlines() if line.startswith("| ") and "test |" not in line]
    assert len(lines) > 25
    named = [re.search(r"`(tests/[\w/]+\.py)::(\w+)` \|$", line) for line in lines]
    assert [line for line, match in zip(lines, named, strict=True) if match is None] == []
    for file, name in (match.groups() for match in named if match):
        assert f"\ndef {name}(" in words_of(DOCS.parent / file), f"{file} has no {name}"
    assert "tests/" not in rest.partition("## Tests that notice")[0]


@pytest.fixture(scope="module")
def measure():
    """The script that counts the mistakes which tests notice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(MUTATION)
        yield importlib.import_module("measure")


def test_the_scores_of_the_tests_are_those_of_the_records(measure):
    files = sorted(MUTATION.glob("*.json"))
    shown = re.findall(r"^\| .*% \|$", words_of(RELIABILITY), flags=re.M)
    assert shown == [*measure.totals(files), *map(measure.row, files)]
