import hashlib

import numpy as np
import pytest
import torch

import transformer_dropout as td
from transformer_dropout.tasks.regression.data import TableData, prepare_table


def write(path, rows=60, seed=0, shuffled=False):
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 2))
    lines = [f"{a:.4f},{2 * a - b:.4f},{b:.4f},red" for a, b in x]
    path.write_text("\n".join(["a,price,b,colour", *(lines[::-1] if shuffled else lines)]))
    return str(path)


def refused(config, *words):
    with pytest.raises(td.InputError) as caught:
        prepare_table(config)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_table_that_comes_with_the_package_is_the_published_one():
    splits = prepare_table(TableData())
    assert sum(len(part) for part in (splits.train, splits.validation, splits.test)) == 442
    assert splits.train.inputs.shape[1] == 10
    assert splits.manifest["target"] == "progression" and splits.manifest["columns"][:2] == ["age", "sex"]


def test_the_training_rows_are_standardised_and_the_others_by_the_same_numbers():
    splits = prepare_table(TableData())
    for values in (splits.train.inputs, splits.train.targets[:, None]):
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones(values.shape[1]))
    assert splits.validation.inputs.mean(0).abs().max() > 0.01


def test_a_split_does_not_depend_on_the_order_of_the_file(tmp_path):
    first, second = (
        prepare_table(
            TableData(
                source=write(tmp_path / f"{shuffled}.csv", shuffled=shuffled),
                target="price",
                columns=("a", "b"),
            )
        )
        for shuffled in (False, True)
    )
    assert first.manifest["train"] == second.manifest["train"]
    assert torch.equal(first.test.targets, second.test.targets)


def test_fewer_rows_are_the_first_of_more():
    few, more = (prepare_table(TableData(train_rows=count)) for count in (20, None))
    assert len(few.train) == 20 and few.manifest["validation"] == more.manifest["validation"]
    few_order, more_order = few.train.targets.argsort(), more.train.targets[:20].argsort()
    assert torch.equal(few_order, more_order)
    assert len(few.manifest["train"]["sha256"]) == len(hashlib.sha256().hexdigest())


def test_a_column_that_is_constant_in_training_is_zero_everywhere(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["a,b,y", *(f"5,{n},{n * n}" for n in range(40))]))
    splits = prepare_table(TableData(source=str(path)))
    assert not splits.train.inputs[:, 0].any() and not splits.test.inputs[:, 0].any()


def test_a_column_of_words_is_refused_with_what_to_type(tmp_path):
    path = write(tmp_path / "x.csv")
    refused(TableData(source=path, target="price"), "line 2, colour", "'red'", "data.columns")


def test_a_target_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    refused(TableData(source=str(path), target="c"), "no column 'c'", "a, b")


def test_a_table_too_small_to_split_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n" + "\n".join(f"{n},1" for n in range(40)))
    refused(TableData(source=str(path)), "too small", "b")
    path.write_text("a\n1\n2\n3\n")
    refused(TableData(source=str(path)), "one column")


def test_more_rows_than_there_are_is_refused():
    refused(TableData(train_rows=400), "400", "data.train_rows=null")


@pytest.mark.parametrize(
    "wrong", [{"train_rows": 1}, {"columns": ("a",)}, {"columns": ("a",), "target": "a"}, {"columns": ()}]
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(td.InputError, match=r"data\."):
        TableData(**wrong)
