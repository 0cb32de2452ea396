import dataclasses

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.tasks.language.data import DataConfig


def test_needs_no_download_by_default():
    assert (DataConfig().source, DataConfig().tokenizer) == ("stdlib-docs", "bytes")


def test_is_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DataConfig().source = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        DataConfig("stdlib-docs")  # type: ignore[misc]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_refuses_a_fraction_that_leaves_a_split_empty(fraction):
    with pytest.raises(InputError, match=r"validation_fraction=0\.1"):
        DataConfig(validation_fraction=fraction)


@pytest.mark.parametrize("name", ["train_tokens", "validation_tokens"])
@pytest.mark.parametrize("limit", [0, -5])
def test_refuses_a_limit_without_tokens(name, limit):
    with pytest.raises(InputError, match=f"data.{name} is {limit}"):
        DataConfig(**{name: limit})
