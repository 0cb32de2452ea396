"""``dropout sites``: the places of a model, and what a recipe would do."""

from inspect import Parameter, isfunction, signature

import pytest
import transformers

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.cli import sites
from transformer_dropout.cli.sites import READY
from transformer_dropout.runs.run import run

RECIPE = """
- {select: mlp_output, layer: LearnedDropout, heads: 4, weight: {linear: {start: 0.0, end: 0.1}}}
- {select: attention_weights, layer: Dropout, p: 0.1}
- select: attention_output
  layer: Dropout
  p: {linear: {start: 0.3, end: 0.0}}
  depth: {linear: {start: 0.0, end: 1.0}}
"""


def assert_refused(result, part):
    """Check for one sentence that holds a part, and nothing else."""
    assert (result.code, result.out) == (2, "")
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("error: ")
    assert part in result.err


def rows_of(text):
    """Return the cells of a printed table, by path and kind."""
    lines = [line.split("  ") for line in text.splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return {(row[0], row[1]): row[2:] for row in rows if len(row) > 4}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_the_places_of_a_family_with_their_rates(here):
    result = here("sites", "gpt2")
    assert result.code == 0
    rows = rows_of(result.out)
    assert rows["transformer.drop", "embedding"] == ["-", "module", "32", "0.1"]
    assert rows["transformer.h.*.attn", "attention_weights"] == ["0-1", "attention", "-", "0.1"]
    assert rows["transformer.h.*.mlp.c_proj", "mlp_hidden"] == ["0-1", "input", "128", "-"]
    assert rows["lm_head", "classifier"] == ["-", "input", "32", "-"]
    assert "not reached" not in result.out


def test_what_cannot_be_reached_is_named(here, tmp_path):
    (tmp_path / "my_encoder.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n"
        "    layer = nn.TransformerEncoderLayer(8, 2, batch_first=True)\n"
        "    return nn.TransformerEncoder(layer, 2), (torch.ones(1, 3, 8),)\n"
    )
    result = here("sites", "my_encoder:build")
    reason = "nothing like it was found in TransformerEncoder"
    assert f"not reached: embedding, {reason}.\nnot reached: classifier, {reason}.\n" in result.out


def test_what_a_recipe_would_do_at_each_place(here, recipe, snapshot):
    before = snapshot()
    result = here("sites", "gpt2", "--recipe", recipe)
    assert result.code == 0
    rows = rows_of(result.out)
    assert rows["transformer.h.*.mlp.dropout", "mlp_output"][-1] == (
        "LearnedDropout heads=4 penalty x 0 > 0.05 > 0.1"
    )
    assert rows["transformer.h.0.attn.resid_dropout", "attention_output"][-2:] == ["0.1", "Dropout 0"]
    assert rows["transformer.h.1.attn.resid_dropout", "attention_output"][-1] == "Dropout 0.3 > 0.15 > 0"
    assert rows["transformer.drop", "embedding"][-1] == "as it is"
    assert snapshot() == before


def test_every_recipe_that_needs_no_argument_is_a_ready_one():
    functions = {name: f for name, f in vars(td.recipes).items() if isfunction(f)}
    complete = {
        name
        for name, f in functions.items()
        if all(parameter.default is not Parameter.empty for parameter in signature(f).parameters.values())
    }
    assert complete == set(READY)


@pytest.mark.parametrize("name", READY)
def test_a_ready_recipe_is_known_by_its_name(here, name):
    result = here("sites", "llama", "--recipe", name)
    assert result.code == 0
    changed = {row[-1] for row in rows_of(result.out).values()} - {"as it is", "with the recipe"}
    assert changed
    if name == "adaptive":
        assert changed == {"Dropout 0.1 > 0.05 > 0"}


def test_a_selector_that_matches_nothing_lists_the_sites(here, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("- {select: mlp_outptu, layer: Dropout, p: 0.1}")
    result = here("sites", "llama", "--recipe", path)
    assert_refused(result, "'mlp_outptu' matches no site")
    assert "model.layers.1.mlp (mlp_output)" in result.err


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        ("{select: attention_weights, layer: DropHead, p: 0.1}", "only the rate can be set"),
        ("{select: mlp_output, layer: LearnedDropout, heads: 5}", "split among 5 heads"),
        ("{select: mlp_output, layer: Dropuot, p: 0.1}", "Did you mean 'Dropout'?"),
    ],
)
def test_a_rule_that_cannot_act_is_refused_before_anything_is_shown(here, tmp_path, rule, part):
    path = tmp_path / "wrong.yaml"
    path.write_text(f"- {rule}")
    assert_refused(here("sites", "mpt", "--recipe", path), part)


def test_a_recipe_that_is_not_there(here, tmp_path):
    assert_refused(here("sites", "llama", "--recipe", "none.yaml"), "There is no recipe none.yaml")
    assert_refused(here("sites", "llama", "--recipe", "learned"), "adaptive, bert, early")
    assert_refused(here("sites", "llama", "--recipe", tmp_path), "holds no regularization.yaml")


def test_an_unknown_family_names_the_nearest(here):
    assert_refused(here("sites", "lama"), "llama")


def test_a_saved_model_and_the_recipe_beside_it(here, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "saved")
    td.save_recipe(tmp_path / "saved", td.Recipe([td.Rule("mlp_output", td.DropPath, p=0.2)]))
    result = here("sites", tmp_path / "saved", "--recipe", tmp_path / "saved")
    assert rows_of(result.out)["model.layers.*.mlp", "mlp_output"][-1] == "DropPath 0.2"


def test_a_config_of_a_model_that_no_table_knows(here, tmp_path):
    transformers.FalconConfig().save_pretrained(tmp_path)
    result = here("sites", tmp_path / "config.json")
    assert rows_of(result.out)["transformer.h.*", "block"] == ["0-1", "block", "32", "-"]


def test_a_decoder_that_was_trained_here(here, tiny, learned, tmp_path, recipe):
    run(tiny(recipe=learned), tmp_path / "run")
    result = here("sites", tmp_path / "run")
    assert rows_of(result.out)["blocks.0.mlp", "mlp_output"] == ["0", "output", "16", "-"]
    planned = here("sites", tmp_path / "run", "--recipe", tmp_path / "run" / "model")
    assert "LearnedDropout heads=2" in rows_of(planned.out)["blocks.0.mlp", "mlp_output"][-1]


def test_a_function_of_ones_own(here, tmp_path):
    (tmp_path / "my_mlp.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n"
        "    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 2))\n"
        "    return model, (torch.ones(2, 4),)\n"
    )
    result = here("sites", "my_mlp:build")
    assert rows_of(result.out)["1", "classifier"] == ["0", "module", "8", "0.3"]


def test_every_place_is_checked_on_demand(here):
    result = here("sites", "bert", "--check")
    assert result.code == 0
    assert "checked: 12 of 12 places are what they are called." in result.out


def test_help_shows_examples(here):
    result = here("sites", "--help")
    assert result.code == 0
    assert "dropout sites llama" in result.out


@pytest.mark.parametrize(
    ("blocks", "text"),
    [([None], "-"), ([0], "0"), ([0, 1, 2, 3], "0-3"), ([0, 1, 3], "0-1, 3"), ([2, 4], "2, 4")],
)
def test_blocks_as_text(blocks, text):
    assert sites.ranges(blocks) == text
