"""The sides of a training step agree where nothing is drawn, and a gate stops them where they do not."""

import sys

import pytest
import torch

from benchmarks import peak_memory, plain_dropout, small_model, training_sides, training_step
from benchmarks.row import Budget
from benchmarks.run import measure
from transformer_dropout import layers
from transformer_dropout.kernels.linear import is_fast
from transformer_dropout.kernels.mlp import GeluMLP
from transformer_dropout.tasks.language.decoder import DecoderConfig

TINY = {"width": 16, "heads": 2, "context": 8}
QUICK = Budget(rounds=1, quick=True)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for module in (training_step, plain_dropout, peak_memory):
        monkeypatch.setattr(module, "VOCABULARY", 61)
    for module in (training_step, peak_memory):
        monkeypatch.setattr(module, "LEARNED", TINY)
    for module in (training_step, plain_dropout):
        monkeypatch.setattr(module, "DENSE", TINY)
    monkeypatch.setattr(small_model, "SHAPE", DecoderConfig(**TINY, blocks=1))
    monkeypatch.setattr(peak_memory, "growth", lambda name, *_: {"reference": 8, "ours": 2}[name])


@pytest.mark.parametrize(
    "row",
    [*training_step.ROWS, *plain_dropout.ROWS, *small_model.ROWS, *peak_memory.ROWS],
    ids=lambda row: f"{row.name}, {row.path}",
)
def test_a_row_gives_a_value_and_says_what_was_checked(row):
    result = measure(row, QUICK)
    assert result.status in ("met", "missed"), result.reason
    assert result.measurement.value > 0
    assert "losses equal within" in result.measurement.gate
    assert result.measurement.about["dtype"] == "float32" or "bfloat16" in row.name


def sides(layer=layers.LearnedDropout):
    shape = DecoderConfig(**TINY, blocks=1)
    ours = training_sides.our_side(61, shape, 2, [training_sides.learned_rule(layer, shape)])
    return ours, training_sides.published_side(61, shape, 2, learned=True)


def test_both_sides_are_built_as_the_docstring_says():
    ours, reference = sides()
    mlp = reference.model.blocks[0].mlp
    assert type(reference.model) is training_sides.PlainDecoder
    assert type(mlp) is training_sides.PlainMLP
    assert type(mlp.expand) is torch.nn.Linear
    assert type(mlp.mlp_output_dropout).__name__ == "PublishedTwin"
    assert not reference.optimizer.param_groups[0]["fused"]
    assert is_fast(ours.model.blocks[0].mlp.mlp_output_dropout.qkv)
    assert ours.optimizer.param_groups[0]["fused"]
    for name, parameter in reference.model.named_parameters():
        assert torch.equal(parameter, ours.model.get_parameter(name)), name


def test_a_wrong_loss_stops_the_measurement():
    ours, reference = sides()
    with torch.no_grad():
        ours.model.norm.weight.mul_(1.01)
    with pytest.raises(AssertionError, match="the losses are"):
        training_sides.check_same(ours, reference, loss=1e-5, gradient=1e-4)


def test_a_wrong_gradient_stops_the_measurement(monkeypatch):
    right = GeluMLP.backward
    monkeypatch.setattr(
        GeluMLP, "backward", lambda *a: tuple(g if g is None else 1.01 * g for g in right(*a))
    )
    with pytest.raises(AssertionError, match="the gradients differ by"):
        training_sides.check_same(*sides(), loss=1e-5, gradient=1e-4)


def test_a_side_of_the_dropout_row_that_drops_nothing_is_found():
    shape = DecoderConfig(**TINY, blocks=1)
    reference = training_sides.published_side(61, shape, 2, learned=False)
    before = reference.loss().item()
    plain_dropout.torch_dropout(reference)
    assert reference.loss().item() != before
    reference.model.eval()
    assert reference.loss().item() == pytest.approx(before)
    reference.model.train()
    shares = []
    block = reference.model.blocks[0]
    for module in (reference.model.embedding, block.attention, block.mlp):
        module.register_forward_hook(lambda m, a, output: shares.append((output == 0).float().mean().item()))
    for _ in range(200):
        reference.loss()
    assert sum(shares) / len(shares) == pytest.approx(0.2, abs=0.02)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_growth_is_that_of_a_step_in_a_process_of_its_own(monkeypatch):
    monkeypatch.undo()
    ours, reference = (peak_memory.growth(name, 1, True) for name in ("ours", "reference"))
    # The logits of 3,200 tokens alone are 643 MB, and the reference holds them three times.
    assert reference > 1.5e9
    assert 1e8 < ours < reference / 4
