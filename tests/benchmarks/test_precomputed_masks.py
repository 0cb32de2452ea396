"""The rows of pre-computed masks: their gates are there before the blocks, and are those of each layer."""

import pytest

from benchmarks import precomputed_masks, training_sides
from benchmarks.row import Budget
from benchmarks.run import measure
from transformer_dropout.layers import PrecomputedLearnedDropout
from transformer_dropout.tasks.language.decoder import DecoderConfig

TINY = {"width": 16, "heads": 2, "context": 8}


@pytest.mark.parametrize("row", precomputed_masks.ROWS, ids=lambda row: f"{row.name}, {row.path}")
def test_a_row_gives_a_value_and_says_what_was_checked(row, monkeypatch):
    monkeypatch.setattr(precomputed_masks, "VOCABULARY", 61)
    monkeypatch.setattr(precomputed_masks, "LEARNED", TINY)
    result = measure(row, Budget(rounds=1, quick=True))
    assert result.status in ("met", "missed"), result.reason
    assert result.measurement.value > 0
    assert "4 gates computed at once" in result.measurement.gate


def side():
    shape = DecoderConfig(**TINY, blocks=2)
    rule = training_sides.learned_rule(PrecomputedLearnedDropout, shape)
    return training_sides.our_side(61, shape, 2, [rule])


def test_masks_that_each_block_computes_are_not_timed(monkeypatch):
    monkeypatch.setattr("transformer_dropout.layers.precomputed.at_hand", lambda *_: False)
    with pytest.raises(AssertionError, match="each block computed its own mask"):
        precomputed_masks.check_all_at_once(side())


def test_gates_that_are_not_those_of_their_layers_are_not_timed(monkeypatch):
    gate = PrecomputedLearnedDropout.gate

    def other(self, *given):
        return gate(self, *given) + (self._source[0].gates is None)

    monkeypatch.setattr(PrecomputedLearnedDropout, "gate", other)
    with pytest.raises(AssertionError, match="the gates differ by"):
        precomputed_masks.check_all_at_once(side())
