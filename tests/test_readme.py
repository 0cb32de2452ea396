"""What the README shows is what the project does."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def replacing_lines():
    """Return the lines that the README offers in place of others."""
    blocks = re.findall(r"```diff\n(.*?)```", README, flags=re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("+ ")]


CASES = list(zip(["gpt2", "llama", "bert"], replacing_lines(), strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside transformers
@pytest.mark.parametrize(("family", "line"), CASES)
def test_the_line_that_replaces_another_works(family, line):
    torch.manual_seed(0)
    model = tiny_model(family).eval()
    inputs = tiny_inputs(model)
    with torch.no_grad():
        before = model(**inputs).logits
        scope = {"td": td, "model": model}
        line = line if "=" in line.split("(")[0] else f"regularization = {line}"
        exec(line, scope)
        handle = scope["regularization"]
        handle.set_progress(1.0)
        model.train()
        # The first of Llama's two blocks has rate 0, so what varies is the second.
        assert not model(**inputs).logits.equal(model(**inputs).logits)
        handle.remove()
        assert model.eval()(**inputs).logits.equal(before)


def test_the_table_is_the_committed_record():
    shown = README.split("<!-- from experiments/default/table.md -->")[1].split("<!-- end -->")[0].strip()
    assert shown
    assert shown in (ROOT / "experiments" / "default" / "table.md").read_text(encoding="utf-8")


def test_every_file_that_is_linked_exists():
    for text in [README, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (ROOT / target).exists() or (ROOT / "docs" / target).exists(), target


def test_every_extra_is_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    line = next(line for line in README.splitlines() if line.startswith("Extras: "))
    assert [extra for extra in project["optional-dependencies"] if f"`{extra}`" not in line] == []


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside transformers
@pytest.mark.parametrize("path", ["README.md", "docs/speed.md"])
def test_the_code_that_is_copied_runs(path):
    torch.manual_seed(0)
    model = tiny_model("gpt2").train()
    inputs = tiny_inputs(model)
    scope = {
        "td": td,
        "model": model,
        "total_steps": 2,
        "loader": [inputs | {"labels": inputs["input_ids"]}] * 2,
    }
    scope["regularization"] = td.regularize_(model, td.recipes.learned(heads=4, weight=0.1))
    blocks = python_blocks(path)
    assert blocks
    for block in blocks:
        exec(block, scope)
    if "loss" in scope:
        scope["loss"].backward()
        assert scope["loss"].isfinite() and scope["regularization"].report()
