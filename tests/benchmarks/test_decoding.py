"""The other side of the decoding row, and the gate before its clock."""

import pytest
import torch

from benchmarks import decoding
from benchmarks.row import Budget
from transformer_dropout.kernels._native import pure_pytorch
from transformer_dropout.tasks.language.cache import Cache
from transformer_dropout.tasks.language.decoder import DecoderConfig

SMALL = DecoderConfig(width=24, heads=3, blocks=2, context=200)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(decoding, "SHAPE", SMALL)
    monkeypatch.setattr(decoding, "VOCABULARY", 97)
    torch.manual_seed(0)


def test_the_other_side_computes_what_the_model_does():
    model = decoding.masked_decoder()
    tokens = torch.randint(97, (1, 50))
    with torch.no_grad():
        torch.testing.assert_close(decoding.published_logits(model, tokens), model(tokens)[:, -1])
    gates = [block.mlp.mlp_output_dropout for block in model.blocks]
    kept = torch.cat([torch.cos(gate.shift) >= 0 for gate in gates]).float().mean()
    assert 0.4 < kept < 0.8


@pytest.mark.parametrize("row", decoding.ROWS, ids=lambda row: row.path)
def test_a_ratio_comes_with_what_was_checked(row):
    with pure_pytorch():
        measured = row.measure(Budget(rounds=2, quick=True))
    assert measured.value > 0
    assert len(measured.per_round) == 2
    assert measured.gate.startswith("same 4 greedy tokens")
    assert measured.about["positions"] == [184, 188]


def test_other_tokens_stop_the_measurement(monkeypatch):
    read = Cache.read
    monkeypatch.setattr(Cache, "read", lambda *arguments: read(*arguments).roll(1, dims=-1))
    with pytest.raises(AssertionError, match="the tokens differ"):
        decoding.decoding_ratio(Budget(rounds=1, quick=True))


def test_the_targets_are_those_that_were_set():
    assert {row.path: row.target for row in decoding.ROWS} == {"pure": 5.0, "native": 17.0}
    assert not decoding.ROWS[0].met(4.9)
