"""Parts of splits: over all folds every example validates once, in the same parts for every run."""

from types import SimpleNamespace

import numpy as np
import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.runs.folds import batch_of, even_part, folded, part_of, whole
from transformer_dropout.runs.order import epoch_order
from transformer_dropout.runs.run import run
from transformer_dropout.runs.run_config import config_from_data
from transformer_dropout.runs.task import Splits

TASK = SimpleNamespace(batch=lambda split, indices: [split[index] for index in indices])
SPLITS = Splits(train="abcdefghij", validation="v", test="t", manifest={"source": "letters"})


def test_without_folds_the_splits_stay():
    assert folded(SPLITS, 0, 0) is SPLITS


def test_each_example_validates_in_one_fold_and_trains_in_the_others():
    splits = [folded(SPLITS, 3, fold) for fold in range(3)]
    held = [each.validation.indices.tolist() for each in splits]
    assert held == [sorted(epoch_order(10, 0, 0)[fold::3].tolist()) for fold in range(3)]
    for each, left_out in zip(splits, held, strict=True):
        assert each.train.indices.tolist() == [n for n in range(10) if n not in left_out]
        assert each.train.split is each.validation.split is SPLITS.train
        assert each.test is None and each.manifest == SPLITS.manifest


def test_there_are_no_more_folds_than_examples():
    assert len(folded(SPLITS, 10, 9).train) == 9
    with pytest.raises(InputError, match="10 training examples for 11 folds"):
        folded(SPLITS, 11, 0)


def test_a_part_of_a_part_is_one_of_the_split():
    part = part_of(part_of("abcdef", np.array([5, 3, 1])), np.array([2, 0]))
    assert (part.split, part.indices.tolist(), len(part)) == ("abcdef", [1, 5], 2)
    assert (whole(part), whole("abc")) == ("abcdef", "abc")


@pytest.mark.parametrize(("split", "left"), [("ab", 2), ("abc", 2), ("abcd", 4), ("abcde", 4)])
def test_an_even_part_lacks_at_most_the_last_example(split, left):
    assert even_part(split).indices.tolist() == list(range(left))


def test_one_example_has_no_two_halves():
    with pytest.raises(InputError, match="two training examples or more"):
        even_part("a")


def test_a_batch_of_a_part_is_one_of_the_split():
    assert batch_of(TASK, "abc", [2, 0]) == ["c", "a"]
    assert batch_of(TASK, part_of("abc", np.array([2, 0, 1])), [1, 0]) == ["a", "c"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["images", "images_vit", "regression"])
def test_a_model_that_reads_its_shape_off_the_examples_trains_on_a_part_of_them(task, tmp_path):
    rule = {"select": "mlp_hidden", "layer": "Dropout", "p": 0.2}
    parts = {"folds": {"folds": 5, "fold": 1}, "self_tuned": {"self_tuned": {"share": 0.1, "every": 1}}}
    for name, keys in parts.items():
        training = {"steps": 2, "batch": 8, "eval_every": 2, "probe_windows": 16, **keys}
        config = config_from_data({"task": task, "recipe": [rule], "training": training}, {})
        record = run(config, tmp_path / name)
        assert record["status"] == "finished" and record["result"]["val_loss"] > 0
        assert ("test_loss" in record["result"]) == (name != "folds")
