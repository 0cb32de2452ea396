"""Costs against numbers worked out by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from transformer_dropout.errors import InputError
from transformer_dropout.runs.cost import (
    META,
    count_cost,
    count_flops,
    count_inference,
    count_parameters,
    needed_bytes,
    sketch_of_splits,
)
from transformer_dropout.runs.loop import build_model
from transformer_dropout.runs.run import prepare
from transformer_dropout.runs.task import Batch
from transformer_dropout.runs.training_config import SelfTunedConfig, TrainingConfig
from transformer_dropout.tasks.language import Language
from transformer_dropout.tasks.language.data import Windows
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

WIDTH, CONTEXT, VOCABULARY, BLOCKS = 16, 16, 50, 1


def cost_of(config):
    """Count a config's cost with a vocabulary of a known size."""
    return count_cost(config, replace(sketch_of_splits(config), vocabulary_size=VOCABULARY))


def forward_flops_per_token():
    """Two operations for each multiplication of a product, counted by hand."""
    projections = 2 * WIDTH * (3 * WIDTH) + 2 * WIDTH * WIDTH
    attention = 2 * CONTEXT * WIDTH + 2 * CONTEXT * WIDTH  # q k^T and its product with v
    mlp = 2 * WIDTH * 4 * WIDTH + 2 * 4 * WIDTH * WIDTH
    return BLOCKS * (projections + attention + mlp) + 2 * WIDTH * VOCABULARY


def gate_flops_per_token():
    return 2 * WIDTH * (3 * WIDTH) + 2 * CONTEXT * WIDTH + 2 * CONTEXT * WIDTH


def plain_parameters():
    """Embeddings; per block 4 w^2 of attention, 8 w^2 of MLP and two norms; the last norm."""
    return (VOCABULARY + CONTEXT) * WIDTH + BLOCKS * (12 * WIDTH**2 + 2 * WIDTH) + WIDTH


def test_flops_and_parameters_of_a_plain_decoder(tiny):
    cost = cost_of(tiny())
    assert cost.inference_flops_per_item == forward_flops_per_token()
    # Each product has two in the backward pass: one for its input and one for its weight.
    assert cost.training_flops_per_item == 3 * forward_flops_per_token()
    assert cost.parameters == plain_parameters()
    assert cost.without_positional == plain_parameters() - CONTEXT * WIDTH
    assert (cost.regularizer, cost.frozen, cost.gate_share) == (0, 0, 0.0)


def test_the_gate_costs_its_projection_and_its_attention(tiny, learned):
    plain, gated = cost_of(tiny()), cost_of(tiny(recipe=learned))
    gate = gate_flops_per_token()
    assert gated.inference_flops_per_item == plain.inference_flops_per_item + gate
    assert gated.gate_share == pytest.approx(gate / (forward_flops_per_token() + gate))
    assert gated.regularizer == 3 * WIDTH**2 + WIDTH
    assert gated.parameters == plain.parameters + gated.regularizer


def test_what_a_layer_computes_in_training_only_is_no_cost_of_inference(tiny):
    rule = {"select": "mlp_output", "layer": "ImportanceDropout", "p": 0.1, "by": "redundancy"}
    plain, cost = cost_of(tiny()), cost_of(tiny(recipe=[rule]))
    assert cost.training_flops_per_item > plain.training_flops_per_item
    assert cost.inference_flops_per_item == plain.inference_flops_per_item


def test_an_encoder_layer_of_torch_costs_its_products_in_evaluation_as_well():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).requires_grad_(False)
    batch = Batch(inputs={"src": torch.randn(2, 3, 8)}, targets=torch.zeros(2), items=6)
    task = SimpleNamespace(score=lambda model, batch: {"loss": model(**batch.inputs).sum()})
    assert count_inference(task, layer, batch) == 6 * 2 * 8 * (3 * 8 + 8 + 2 * 16) + 2 * 2 * 2 * 3 * 3 * 8
    assert torch.backends.mha.get_fastpath_enabled()


def test_plain_dropout_costs_no_product(tiny, learned):
    cost = cost_of(tiny(recipe=learned[1:]))
    assert (cost.gate_share, cost.regularizer) == (0.0, 0)


def test_parameters_without_a_gradient_are_counted_apart(tiny):
    rule = {"select": "mlp_output", "layer": "PrecomputedLearnedDropout", "heads": 2, "weight": 0.1}
    assert cost_of(tiny(recipe=[rule])).frozen == 4 * WIDTH**2
    assert cost_of(tiny(recipe=[rule | {"detach": False}])).frozen == 0


def test_tokens_of_the_whole_run(tiny):
    assert cost_of(tiny(steps=7, batch=3, accumulation=5)).items == 7 * 3 * 5 * CONTEXT


def test_the_memory_estimate_grows_with_the_batch(tiny):
    small, large = (cost_of(tiny(batch=batch)) for batch in (4, 64))
    state = 16 * small.parameters
    assert small.memory_bytes > state
    assert (large.memory_bytes - state) / (small.memory_bytes - state) == pytest.approx(16, rel=1e-3)


def test_the_memory_estimate_holds_at_least_the_largest_activations(tiny):
    logits = 4 * CONTEXT * VOCABULARY * 4
    assert cost_of(tiny()).memory_bytes > 16 * plain_parameters() + logits


def test_flops_do_not_depend_on_the_batch_per_token():
    with torch.device("meta"):
        model = Decoder(VOCABULARY, DecoderConfig(width=8, heads=2, blocks=2, context=4))
    batches = [Language().batch(Windows(np.zeros(13), 4), range(size)).to(META) for size in (1, 3)]
    one, three = (count_flops(Language().loss, model, batch) for batch in batches)
    assert 3 * one == three
    one, three = (count_inference(Language(), model, batch) for batch in batches)
    assert 3 * one == three
    assert count_parameters(model) == (VOCABULARY + 4) * 8 + 2 * (12 * 64 + 16) + 8


def test_two_passes_cost_twice_and_two_ends_of_one_what_lies_behind_the_fork(tiny):
    plain = cost_of(tiny())
    two, ends = cost_of(tiny(rdrop=1.0)), cost_of(tiny(rdrop=1.0, rdrop_blocks=1))
    assert two.training_flops_per_item == 2 * plain.training_flops_per_item
    # The one block there is, and the output layer, see the batch twice.
    assert ends.training_flops_per_item == two.training_flops_per_item
    assert two.inference_flops_per_item == plain.inference_flops_per_item
    noise = cost_of(tiny(rdrop=1.0, rdrop_view="token_noise", token_noise=0.1))
    assert noise.training_flops_per_item == 2 * plain.training_flops_per_item
    assert two.memory_bytes > plain.memory_bytes


def test_gates_and_rates_that_learn_from_held_out_data_cost_their_passes(tiny, learned):
    plain = cost_of(tiny(recipe=learned)).training_flops_per_item
    held, seldom = (cost_of(tiny(recipe=learned, held_out=0.1, held_out_every=n)) for n in (1, 10))
    extra = held.training_flops_per_item - plain
    # A forward, and a backward through everything behind the gate.
    assert forward_flops_per_token() < extra < plain
    assert seldom.training_flops_per_item == pytest.approx(plain + extra / 10)
    tuned = cost_of(tiny(recipe=learned, self_tuned=SelfTunedConfig(every=10)))
    assert tuned.training_flops_per_item == pytest.approx(1.3 * plain)


def test_averaged_weights_need_memory(tiny):
    assert cost_of(tiny(ema=0.9)).memory_bytes == cost_of(tiny()).memory_bytes + 4 * plain_parameters()


def test_a_recipe_that_does_not_fit_is_refused(tiny, learned):
    config = tiny(recipe=[learned[0] | {"heads": 5}])
    with pytest.raises(InputError, match="cannot be split among 5 heads"):
        cost_of(config)
    with pytest.raises(InputError, match="matches no site"):
        cost_of(replace(config, recipe=[learned[1] | {"select": "blocks.9.mlp"}]))


def test_counting_leaves_no_gradient_behind(tiny):
    config = tiny()
    splits, task = prepare(config), config.find_task()
    model, _ = build_model(config, splits)
    count_flops(task.loss, model, task.batch(splits.train, [0, 1]))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("training", "bytes_a_parameter", "forwards"),
    [({"batch": 64}, 16, 32), ({"batch": 1}, 16, 1), ({"batch": 64, "ema": 0.9}, 20, 32)],
)
def test_memory_is_that_of_the_weights_and_of_a_forward_of_the_whole_batch(
    monkeypatch, training, bytes_a_parameter, forwards
):
    monkeypatch.setattr("transformer_dropout.runs.cost.saved_bytes", lambda *of_two_examples: 100)
    model = torch.nn.Linear(3, 2)
    needed = needed_bytes(TrainingConfig(**training), None, model, None)
    assert needed == 8 * bytes_a_parameter + 100 * forwards
