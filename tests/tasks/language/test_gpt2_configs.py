"""The run configs of GPT-2's size, as far as they can be checked without a step."""

from pathlib import Path

import pytest

from transformer_dropout.runs.cost import count_cost, sketch_of_splits
from transformer_dropout.runs.run_config import load_run_config

FILES = sorted((Path(__file__).parents[3] / "configs" / "gpt2_124m").glob("*.yaml"))
# 12 blocks of two norms, attention and MLP with biases, the last norm, and the embeddings.
BLOCK = 4 * 768 + (4 * 768**2 + 4 * 768) + (8 * 768**2 + 5 * 768)
PLAIN = 12 * BLOCK + 2 * 768 + (50_257 + 1024) * 768
GATE = 3 * 768**2 + 768
ADDED = {
    "none": 0,
    "dropout": 0,
    "learned": 12 * GATE,
    "precomputed": 12 * GATE + 4 * 768**2,
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_size_is_gpt2s_and_the_cost_is_counted_without_a_weight(file):
    config = load_run_config(file)
    cost = count_cost(config, sketch_of_splits(config))
    assert PLAIN == 124_439_808
    assert cost.parameters == PLAIN + ADDED[file.stem]
    assert cost.items == config.training.steps * 64 * 1024
    # Two operations per weight and token forward, four backward, and the attention.
    assert 6 * 0.99 * (PLAIN - 1024 * 768) < cost.training_flops_per_item < 10 * PLAIN


def test_every_config_has_a_row():
    assert {file.stem for file in FILES} == set(ADDED)
