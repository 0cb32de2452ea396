import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_dropout.errors import InputError
from transformer_dropout.tasks.language.data import Windows


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(2, 100))
def test_windows_tile_the_tokens(context, length):
    tokens = np.arange(length, dtype=np.uint16)
    if length <= context:
        with pytest.raises(InputError):
            Windows(tokens, context)
        return
    windows = Windows(tokens, context)
    inputs, targets = windows.inputs_and_targets(range(len(windows)))
    used = len(windows) * context
    assert inputs.flatten().tolist() == list(range(used))
    assert targets.flatten().tolist() == list(range(1, used + 1))
    assert length - 1 - used < context


def test_batches_are_long_and_contiguous_and_read_from_the_map(tmp_path):
    np.arange(1000, dtype=np.uint32).tofile(tmp_path / "tokens.bin")
    windows = Windows(np.memmap(tmp_path / "tokens.bin", np.uint32, mode="r"), 10)
    inputs, targets = windows.inputs_and_targets(np.array([3, 0, 98]))
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape == (3, 10)
    assert inputs.is_contiguous() and targets.is_contiguous()
    assert inputs[:, 0].tolist() == [30, 0, 980]
    assert windows.inputs_and_targets([])[0].shape == (0, 10)


@pytest.mark.parametrize("index", [-1, 99, 1000])
def test_a_window_that_is_not_there(index):
    with pytest.raises(IndexError, match="there are 99"):
        Windows(np.arange(1000), 10).inputs_and_targets([0, index])


def test_too_little_text_says_both_sizes():
    with pytest.raises(InputError, match=r"has 32 tokens.*takes 33: use --set model\.context=31 or less"):
        Windows(np.zeros(32, np.uint16), 32)
