"""Recipes beside saved models, and learned layers through `save_pretrained` and `from_pretrained`."""

import pytest
import torch
import transformers
from safetensors import safe_open

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import FAMILIES, tiny_inputs, tiny_model
from transformer_dropout.surgery.saved_recipe import LEARNED_FILE, RECIPE_FILE

RATES = td.Recipe(
    [td.Rule("mlp_output", td.Dropout, p=td.Linear(0.3, 0.0)), td.Rule("block", td.DropPath, p=0.1)]
)


def rule(kind="mlp_output", layer=td.LearnedDropout):
    return td.Rule(kind, layer, heads=4, shift=1.4, eval_mask="mean", weight=0.1)


@pytest.fixture(autouse=True)
def quiet():
    """The stored model holds learned weights that the plain one does not know, and says so."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def trained(family, recipe):
    """A regularized model whose layers are no longer as they were made."""
    model = tiny_model(family)
    handle = td.regularize_(model, recipe)
    with torch.no_grad():
        for placed in handle.placed:
            for parameter in placed.layer.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model, handle


def output(model):
    torch.manual_seed(3)
    with torch.no_grad():
        return model(**tiny_inputs(model))[0]


def test_a_recipe_is_saved_beside_a_model_and_read_again(tmp_path):
    td.save_recipe(tmp_path / "new", RATES)
    assert td.load_recipe(tmp_path / "new") == RATES
    assert [file.name for file in (tmp_path / "new").iterdir()] == [RECIPE_FILE]


def test_rates_are_restored_by_the_recipe_alone(tmp_path):
    model, _ = trained("gpt2", RATES)
    model.save_pretrained(tmp_path)
    td.save_recipe(tmp_path, RATES)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    td.regularize_(loaded, td.load_recipe(str(tmp_path)))
    assert torch.equal(output(loaded), output(model))
    assert torch.equal(output(loaded.train()), output(model.train()))


@pytest.mark.parametrize("family", FAMILIES)
def test_learned_layers_are_restored(family, tmp_path):
    model, handle = trained(family, td.Recipe([rule()]))
    model.save_pretrained(tmp_path)
    td.save_regularized(tmp_path, handle)
    loaded = type(model).from_pretrained(tmp_path)
    restored = td.load_regularized(tmp_path, loaded)
    assert restored.recipe == handle.recipe
    assert torch.equal(output(loaded), output(model))
    assert torch.equal(output(loaded.train()), output(model.train()))


def test_precomputed_masks_are_restored_with_what_they_share(tmp_path):
    model, handle = trained("llama", td.Recipe([rule(layer=td.PrecomputedLearnedDropout)]))
    with torch.no_grad():
        model.model.embed_tokens.mask_embedding.projection.weight.normal_()
    model.save_pretrained(tmp_path)
    td.save_regularized(tmp_path, handle)
    loaded = type(model).from_pretrained(tmp_path)
    td.load_regularized(tmp_path, loaded)
    assert torch.equal(output(loaded), output(model))


def test_a_model_with_another_head_takes_them_over(tmp_path):
    model, handle = trained("bert", td.Recipe([rule()]))
    model.save_pretrained(tmp_path)
    td.save_regularized(tmp_path, handle)
    loaded = transformers.AutoModel.from_pretrained(tmp_path)
    td.load_regularized(tmp_path, loaded)
    hidden = model.bert(**tiny_inputs(model)).last_hidden_state
    assert torch.equal(loaded(**tiny_inputs(model)).last_hidden_state, hidden)


def test_a_recipe_that_learns_nothing_leaves_no_file_of_learned_weights(tmp_path):
    td.save_regularized(tmp_path, trained("gpt2", td.Recipe([rule()]))[1])
    assert (tmp_path / LEARNED_FILE).is_file()
    td.save_regularized(tmp_path, td.set_rates(tiny_model("gpt2"), {"mlp_output": 0.2}))
    assert [file.name for file in tmp_path.iterdir()] == [RECIPE_FILE]
    assert set(td.load_regularized(tmp_path, tiny_model("gpt2")).metrics().values()) == {0.2}


def test_a_folder_without_a_recipe_is_refused(tmp_path):
    with pytest.raises(td.InputError, match=r"holds no regularization\.yaml; write one with td\.save_recipe"):
        td.load_recipe(tmp_path)


def test_a_recipe_with_learned_layers_but_without_their_weights_is_refused(tmp_path):
    td.save_recipe(tmp_path, td.Recipe([rule()]))
    model = tiny_model("llama")
    keys = list(model.state_dict())
    with pytest.raises(
        td.InputError, match=r"no regularization\.safetensors; write it with td\.save_regularized"
    ):
        td.load_regularized(tmp_path, model)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (
            rule("attention_output"),
            r"layers\.0\.mlp\.mlp_output_dropout\.qkv\.weight is of shape \(96, 32\) in the",
        ),
        (rule("mlp_hidden"), "is missing in"),
    ],
)
def test_learned_weights_of_another_model_are_refused(tmp_path, other, part):
    td.save_regularized(tmp_path, trained("llama", td.Recipe([rule()]))[1])
    td.save_recipe(tmp_path, td.Recipe([other]))
    model = tiny_model("llama")
    expected = output(model)
    with pytest.raises(td.InputError, match="does not fit the model: .*" + part):
        td.load_regularized(tmp_path, model)
    assert torch.equal(output(model), expected)


def test_a_broken_file_of_learned_weights_is_refused(tmp_path):
    td.save_regularized(tmp_path, trained("llama", td.Recipe([rule()]))[1])
    (tmp_path / LEARNED_FILE).write_bytes(b"no tensors")
    with pytest.raises(td.InputError, match="cannot be read"):
        td.load_regularized(tmp_path, tiny_model("llama"))


def test_a_recipe_is_read_from_a_folder_or_from_its_own_file(tmp_path):
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        td.save_recipe(str(folder), RATES)
    assert td.load_recipe(str(folder / RECIPE_FILE)) == td.load_recipe(folder) == RATES


def test_the_file_of_learned_weights_is_one_of_pytorch(tmp_path):
    td.save_regularized(str(tmp_path / "new"), trained("llama", td.Recipe([rule()]))[1])
    with safe_open(tmp_path / "new" / LEARNED_FILE, "pt") as file:
        metadata, names = file.metadata(), file.keys()
    assert metadata == {"format": "pt"}
    # Below the base model, whatever head there is.
    assert names and all(name.startswith("layers.") for name in names)


def test_what_is_no_handle_or_no_model_is_named(tmp_path):
    with pytest.raises(td.InputError, match=r"what td\.regularize_ returned, not Recipe\."):
        td.save_regularized(tmp_path, RATES)
    with pytest.raises(td.InputError, match="with a torch module, not str"):
        td.load_regularized(tmp_path, "gpt2")
    assert list(tmp_path.iterdir()) == []
