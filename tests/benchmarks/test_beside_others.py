"""The rows beside what people use, at a tiny shape."""

import pytest
import torch

from benchmarks import beside_others, hugging_face
from benchmarks.row import Budget
from transformer_dropout.tasks.language.decoder import DecoderConfig

QUICK = Budget(rounds=1, quick=True)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def tiny(monkeypatch):
    shape = DecoderConfig(width=16, heads=2, blocks=1, context=8)
    monkeypatch.setitem(beside_others.SHAPES, "26 blocks", (shape, 32, 2))


@pytest.mark.parametrize("side", beside_others.SIDES)
def test_a_step_is_timed_beside_another_of_the_same_size(side, tiny):
    measured = beside_others.SIDES[side](QUICK, name="26 blocks")
    assert measured.value > 0
    assert "equal within" in measured.gate or "parameters" in measured.gate


def test_other_weights_stop_the_measurement(tiny, monkeypatch):
    monkeypatch.setattr(beside_others.PlainGPT, "load_state_dict", lambda self, state: None)
    with pytest.raises(AssertionError, match="without dropout the losses are"):
        beside_others.beside_script(QUICK, name="26 blocks")


@pytest.mark.parametrize("row", hugging_face.ROWS, ids=lambda row: row.name.split("'")[1])
def test_a_verb_changes_what_it_says(row, monkeypatch):
    monkeypatch.setattr(hugging_face, "TOKENS", 16)
    monkeypatch.setattr(hugging_face, "BATCH", 2)
    torch.manual_seed(0)
    measured = row.measure(QUICK)
    assert "losses of the first step" in measured.gate and measured.action is not None


@pytest.mark.parametrize(
    "row", [row for row in hugging_face.ROWS if "Learned" in row.name], ids=lambda r: r.name
)
def test_the_targets_of_learned_masks_are_the_products_that_they_add(row):
    family = row.name.split("' ")[1].split(",")[0]
    assert row.target == round(hugging_face.products_after(family, hugging_face.learned_masks), 2)
