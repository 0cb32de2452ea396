"""Exactly the tensors that are wanted, or one sentence."""

import pytest
import torch
from safetensors.torch import save

from transformer_dropout.errors import InputError
from transformer_dropout.tensor_file import check_fit, read_tensors

WANTED = {"a": torch.zeros(2, 3), "steps": torch.zeros((), dtype=torch.int64)}


def read(path, tensors):
    path.write_bytes(save(tensors))
    stored = read_tensors(path)
    check_fit(path, stored, WANTED)
    return stored


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_that_fit_are_returned_in_any_precision(tmp_path, dtype):
    stored = read(tmp_path / "a.safetensors", WANTED | {"a": torch.ones(2, 3, dtype=dtype)})
    assert stored["a"].dtype == dtype
    assert stored["a"].sum() == 6


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"a": torch.zeros(3, 2)}, "a is of shape (3, 2) in the file and of shape (2, 3) in the model"),
        ({"b": torch.zeros(1)}, "b is of shape (1,) in the file and missing in the model"),
        ({"a": torch.zeros(2, 3, dtype=torch.int32)}, "a is of torch.int32 in the file and of torch.float32"),
        ({"a": torch.zeros(2, 3, dtype=torch.complex64)}, "a is of torch.complex64 in the file"),
        ({"steps": torch.zeros(())}, "steps is of torch.float32 in the file and of torch.int64"),
        ({"a": torch.full((2, 3), torch.nan)}, "a holds numbers that are not finite"),
        ({"a": torch.full((2, 3), torch.inf)}, "a holds numbers that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, changes, part):
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError) as caught:
        read(path, WANTED | changes)
    assert str(path) in str(caught.value)
    assert part in str(caught.value)


def test_a_tensor_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="steps is missing in the file and of shape"):
        read(tmp_path / "a.safetensors", {"a": WANTED["a"]})


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path):
    path, whole = tmp_path / "a.safetensors", save(WANTED)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cannot be read as safetensors: [^\n]+\.$"):
            read_tensors(path)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        read_tensors(path)
