"""What the masks of one text keep, seen in models of ours and of others, and nothing of it left behind."""

import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.audit._masks import look
from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

IDS = torch.arange(4, 14)[None]


def decoder(*rules):
    torch.manual_seed(0)
    model = Decoder(64, DecoderConfig(width=32, heads=4, blocks=2, context=16))
    return model, td.regularize_(model, td.Recipe(rules))


def of_kind(masks, kind):
    return [place for place in masks.places if place.kind == kind]


def test_a_learned_mask_is_the_one_that_the_layer_computes():
    model, handle = decoder(td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=1.0))
    first = look(model, (IDS,)).places[0]
    seen = []
    handle.placed[0].layer.observer = lambda keep, mask: seen.append((keep, mask))
    with torch.no_grad():
        model.eval()(IDS)
    assert first.expected.equal(seen[0][0][0])
    assert first.evaluated.equal(seen[0][1][0])
    assert set(first.drawn.unique().tolist()) == {0.0, 1.0}
    assert (first.rate, first.block, first.kind) == (None, "blocks.0", "mlp_output")
    assert first.drawn.mean().item() == pytest.approx(first.expected.mean().item(), abs=0.1)


def test_plain_dropout_is_expected_alike_everywhere_and_keeps_all_in_evaluation():
    model, _ = decoder(td.Rule("attention_output", td.Dropout, p=0.25))
    for place in look(model, (IDS,)).places:
        assert (place.rate, place.expected, place.evaluated) == (0.25, 0.75, 1.0)
        assert place.drawn.shape == (10, 32)
        assert place.drawn.mean().item() == pytest.approx(0.75, abs=0.1)


@pytest.mark.parametrize("layer", [td.Dropout, td.DropKey, td.DropHead])
def test_dropped_attention_weights_are_seen_by_head_query_and_key(layer):
    model, _ = decoder(td.Rule("attention_weights", layer, p=0.5))
    places = of_kind(look(model, (IDS,)), "attention_weights") or look(model, (IDS,)).places
    assert len(places) == 2
    for place in places:
        weights, dropped = place.attention.weights, place.attention.dropped
        assert weights.shape == dropped.shape == (4, 10, 10)
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 10))
        assert not dropped.triu(1).any()
        assert dropped.any()


@pytest.mark.parametrize(
    ("family", "settings", "kinds"),
    [
        ("gpt2", {}, {"embedding": 1, "attention_weights": 2, "attention_output": 2, "mlp_output": 2}),
        ("llama", {"attention_dropout": 0.3}, {"attention_weights": 2}),
        ("opt", {}, {"attention_output": 2, "mlp_output": 2}),
        ("deberta-v2", {}, {"attention_weights": 2, "attention_output": 2, "mlp_output": 2}),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside transformers
def test_the_dropout_of_others_models_is_seen_too(family, settings, kinds):
    masks = look(tiny_model(family, **settings), {"input_ids": IDS})
    for kind, count in kinds.items():
        assert len(of_kind(masks, kind)) == count
    for place in of_kind(masks, "attention_weights"):
        assert place.attention.dropped.any()


def test_a_zero_hides_what_a_dropout_did_to_it():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5))
    place = look(model, torch.randn(1, 6, 8)).places[0]
    unknown = place.drawn.isnan()
    assert 0 < unknown.sum() < unknown.numel()
    assert place.expected == 0.5


def test_noise_without_a_mask_is_named_and_not_pictured():
    model, _ = decoder(td.Rule("mlp_output", td.GaussianDropout, p=0.3))
    masks = look(model, (IDS,))
    assert masks.places == ()
    assert masks.unpictured[0] == "blocks.0.mlp.mlp_output_dropout (GaussianDropout)"


def test_looking_changes_nothing():
    model, handle = decoder(
        td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=1.0, weight=0.1),
        td.Rule("attention_weights", td.Dropout, p=0.3),
    )
    model.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    look(model, (IDS,))
    assert torch.get_rng_state().equal(random)
    assert model.training
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
    for placed in handle.placed:
        assert placed.layer.observer is None
        assert "is_plain_dropout" not in vars(placed.layer)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_more_than_one_text_is_refused():
    with pytest.raises(td.InputError, match="one text, and these inputs hold 2"):
        look(nn.Dropout(0.5), torch.ones(2, 4))
