"""Models on disk: readable by anyone's safetensors, and bit-equal after a round trip."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from transformer_dropout.errors import InputError
from transformer_dropout.recipe import Recipe
from transformer_dropout.runs.cost import sketch_of_splits
from transformer_dropout.runs.loop import build_model
from transformer_dropout.tasks.language.saved_model import load_model, save_model

PRECOMPUTED = {
    "select": "mlp_output",
    "layer": "PrecomputedLearnedDropout",
    "heads": 2,
    "shift": 1.0,
    "weight": 0.1,
}


@pytest.fixture
def tokens():
    return torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["none", "learned", "precomputed"])
def recipe(request, learned):
    rules = {"none": [], "learned": learned, "precomputed": [PRECOMPUTED, learned[1]]}
    return rules[request.param]


def built(tiny, recipe):
    """Return a model whose masks keep some elements and drop others."""
    config = tiny(recipe=recipe)
    model, regularization = build_model(config, sketch_of_splits(config))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("shift"):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 3)
    return model.eval(), regularization


def test_a_loaded_model_gives_bit_equal_outputs(tmp_path, tiny, recipe, tokens):
    model, regularization = built(tiny, recipe)
    save_model(tmp_path / "model", model, Recipe.from_data(recipe))
    loaded, handle = load_model(tmp_path / "model")
    with torch.no_grad():
        assert loaded(tokens).equal(model(tokens))
    assert not loaded.training
    assert [placed.site for placed in handle.placed] == [placed.site for placed in regularization.placed]
    assert handle.progress == 1.0


def test_a_loaded_model_trains_as_the_saved_one(tmp_path, tiny, recipe, tokens):
    model, regularization = built(tiny, recipe)
    save_model(tmp_path / "model", model, Recipe.from_data(recipe))
    losses = []
    for some_model, handle in ((model, regularization), load_model(tmp_path / "model")):
        some_model.train()
        torch.manual_seed(5)
        losses.append((some_model(tokens, tokens) + handle.penalty()).item())
    assert losses[0] == losses[1]


def test_the_files_open_with_the_plain_library(tmp_path, tiny, learned):
    model, _ = built(tiny, learned)
    save_model(tmp_path / "model", model, Recipe.from_data(learned))
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    state = model.state_dict()
    assert tensors.keys() == state.keys()
    assert all(tensor.equal(state[name]) for name, tensor in tensors.items())
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["model_type"], config["width"]) == ("transformer-dropout-decoder", 16)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "regularization.yaml"}


def test_a_regularizer_adds_keys_and_changes_none(tiny, learned):
    plain = build_model(config := tiny(), sketch_of_splits(config))[0].state_dict()
    regularized = build_model(config := tiny(recipe=learned), sketch_of_splits(config))[0].state_dict()
    assert plain.keys() < regularized.keys()
    assert all(tensor.equal(regularized[name]) for name, tensor in plain.items())


def test_a_state_given_from_outside_is_written_in_place_of_the_models_own(tmp_path, tiny, tokens):
    model, _ = built(tiny, [])
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    save_model(tmp_path, model, Recipe(), zeros)
    with torch.no_grad():
        assert load_model(tmp_path)[0](tokens).abs().max() == 0


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read .*give the folder of a finished run"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="is not of a transformer-dropout-decoder"):
        load_model(tmp_path)
