import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.layers import adversarial_dropout
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig
from transformer_dropout.terms.held_out import gate_parameters


def decoder(*rules, blocks=4):
    torch.manual_seed(0)
    model = Decoder(11, DecoderConfig(width=8, heads=2, blocks=blocks, context=8))
    return model, td.regularize_(model, td.Recipe(rules))


def tokens(seed=0, batch=3):
    return torch.randint(11, (batch, 9), generator=torch.Generator().manual_seed(seed))


ANCHORED = td.Rule("mlp_output", td.AnchoredDropout, heads=2, anchor_p=0.3, weight=1.0)
ADVERSARIAL = td.Rule("mlp_output", td.AdversarialDropout, heads=2, anchor_p=0.3, weight=1.0)


def test_the_adversarial_loss_is_the_formula():
    logits, other = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    labels = torch.randint(5, (2, 4))
    labels[0, 1] = -100
    found = td.adversarial_dropout_loss(logits, other, labels, 0.7)
    total, divergence, counted = 0.0, 0.0, 0
    for b in range(2):
        for t in range(4):
            if labels[b, t] == -100:
                continue
            p, q = logits[b, t].softmax(-1), other[b, t].softmax(-1)
            counted += 1
            total -= p[labels[b, t]].log().item()
            divergence += sum((p[c] * (p[c] / q[c]).log()).item() for c in range(5))
    assert found.item() == pytest.approx((total + 0.7 * divergence) / counted, rel=1e-5)
    with pytest.raises(td.InputError, match="needs"):
        td.adversarial_dropout_loss(logits, other[:1], labels, 1.0)


def test_the_first_view_is_plain_dropout_and_the_second_the_learned_mask():
    model, handle = decoder(ANCHORED)
    flags = []
    for placed in handle.placed:
        placed.layer.register_forward_hook(lambda layer, *_: flags.append(layer.at_anchor))
    first, second = td.anchored_passes(model, tokens()[:, :-1])
    assert flags == [True] * 4 + [False] * 4
    assert first.shape == second.shape == (3, 8, 11)
    assert handle.penalty().item() == pytest.approx(0, abs=1e-5)
    td.rdrop_loss(first, second, tokens()[:, 1:], 1.0).backward()


def test_keyword_arguments_give_the_views_of_one_tensor():
    model, _ = decoder(ANCHORED)
    ids, views = tokens()[:, :-1], []
    for inputs in (ids, {"tokens": ids}):
        torch.manual_seed(0)
        views.append(torch.stack(td.anchored_passes(model, inputs)))
    assert views[0].equal(views[1])


def test_the_layers_are_learned_again_after_a_fault():
    model, handle = decoder(ANCHORED)
    with pytest.raises(IndexError):
        td.anchored_passes(model, torch.full((1, 3), 99))
    assert not any(placed.layer.at_anchor for placed in handle.placed)


def test_the_adversary_climbs_the_divergence_that_the_model_descends():
    """Under the same noise a small step of either side changes the divergence as it should."""
    model, _ = decoder(ADVERSARIAL)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.4)
    ids, labels = tokens(batch=32)[:, :-1], tokens(batch=32)[:, 1:]
    weights, gates = gate_parameters(model)

    torch.manual_seed(1)
    plain, adversarial = td.anchored_passes(model, ids)
    with_it = td.adversarial_dropout_loss(plain, adversarial, labels, 1.0)
    without = td.adversarial_dropout_loss(plain, adversarial, labels, 0.0)
    for parameters, sign in ((weights, 1), (gates, -1)):
        reported = torch.autograd.grad(with_it - without, parameters, retain_graph=True, allow_unused=True)
        true = true_gradients(model, ids, labels, parameters)
        dot = sum((r * t).sum() for r, t in zip(reported, true, strict=True) if r is not None)
        assert dot * sign > 0


def true_gradients(model, ids, labels, parameters):
    """The divergence's gradient with the reversal taken out."""
    before = adversarial_dropout.reversed_gradient
    adversarial_dropout.reversed_gradient = lambda x: x
    try:
        torch.manual_seed(1)
        plain, adversarial = td.anchored_passes(model, ids)
        loss = td.adversarial_dropout_loss(plain, adversarial, labels, 1.0)
        loss = loss - td.adversarial_dropout_loss(plain, adversarial, labels, 0.0)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        adversarial_dropout.reversed_gradient = before
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def test_a_model_without_anchored_layers_is_refused():
    model, _ = decoder(td.Rule("mlp_output", td.Dropout, p=0.1))
    with pytest.raises(td.InputError, match=r"td\.two_passes"):
        td.anchored_passes(model, tokens())


@pytest.mark.parametrize("last", [1, 2, 4])
def test_only_the_last_blocks_see_the_batch_twice(last):
    model, _ = decoder(td.Rule("mlp_output", td.Dropout, p=0.5))
    seen = []
    for block in model.blocks:
        block.mlp.register_forward_pre_hook(lambda m, given: seen.append(len(given[0])))
    first, second = td.tail_passes(model, tokens()[:, :-1], last)
    assert seen == [3] * (4 - last) + [6] * last
    assert first.shape == second.shape == (3, 8, 11)
    assert not torch.equal(first, second)
    assert not any(block._forward_pre_hooks for block in model.blocks)


def test_without_noise_in_the_last_blocks_both_views_are_the_model():
    model, _ = decoder(td.Rule("mlp_output", td.Dropout, p=0.5, blocks=[0, 1]))
    torch.manual_seed(5)
    first, second = td.tail_passes(model, tokens()[:, :-1], 2)
    torch.manual_seed(5)
    torch.testing.assert_close(first, model(tokens()[:, :-1]))
    torch.testing.assert_close(first, second)


def test_gradients_are_those_of_two_forwards_that_share_their_lower_noise():
    model, _ = decoder()
    loss = td.rdrop_loss(*td.tail_passes(model, tokens()[:, :-1], 2), tokens()[:, 1:], 1.0)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    td.rdrop_loss(*td.two_passes(model, tokens()[:, :-1]), tokens()[:, 1:], 1.0).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("last", [0, 5])
def test_a_number_of_blocks_that_there_is_not_is_refused(last):
    with pytest.raises(td.InputError, match="has 4 blocks"):
        td.tail_passes(decoder()[0], tokens(), last)


@pytest.mark.parametrize("family", ["Llama", "GPTNeoX", "Bert"])
def test_families_with_masks_and_rotary_positions(family):
    transformers = pytest.importorskip("transformers")
    shape = {
        "vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 16,
    }  # fmt: skip
    kind = f"{family}ForMaskedLM" if family == "Bert" else f"{family}ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**shape)).eval()
    ids, mask = tokens()[:, :-1], torch.ones(3, 8, dtype=torch.long)
    mask[0, :2] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if family != "Bert":
        inputs["use_cache"] = False
    first, second = td.tail_passes(model, inputs, 2)
    expected = model(**inputs).logits
    for found in (first, second):
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)


def test_a_head_that_picks_tokens_by_its_inputs_is_refused_or_right():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=11, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
    model = transformers.GPT2ForSequenceClassification(config).eval()
    with pytest.raises((td.InputError, RuntimeError, IndexError)):
        td.tail_passes(model, {"input_ids": tokens()}, 1)
