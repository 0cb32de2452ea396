import torch

from transformer_dropout.layers import AdversarialDropout, AnchoredDropout
from transformer_dropout.layers.adversarial_dropout import reversed_gradient

WIDTH, HEADS = 8, 2


def layer(kind, **words):
    torch.manual_seed(0)
    built = kind(WIDTH, HEADS, anchor_p=0.25, **words)
    torch.nn.init.normal_(built.qkv.weight, std=0.6)
    return built


def gradients(built, x):
    """Return output, the loss's gradient and the penalty's, of one seeded forward."""
    torch.manual_seed(5)
    y = built(x)
    parameters = list(built.parameters())
    loss = torch.autograd.grad(y.square().sum(), parameters, retain_graph=True)
    return y, loss, torch.autograd.grad(built.take_penalty(), parameters)


def test_the_losss_gradient_is_turned_around_and_the_penaltys_is_not():
    x = torch.randn(3, 5, WIDTH)
    y, loss, penalty = gradients(layer(AdversarialDropout), x)
    expected_y, expected_loss, expected_penalty = gradients(layer(AnchoredDropout, detach=True), x)
    assert torch.equal(y, expected_y)
    for found, expected in zip(loss, expected_loss, strict=True):
        assert expected.abs().sum() > 0
        torch.testing.assert_close(found, -expected)
    torch.testing.assert_close(penalty, expected_penalty)


def test_a_reversed_gradient_changes_no_bit_of_the_value():
    x = torch.randn(10_000).requires_grad_()
    assert torch.equal(reversed_gradient(x), x)
    reversed_gradient(x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, -1))


def test_gradient_descent_makes_its_masks_worse_for_the_model():
    """The task wants channel 0 kept; the adversary learns to drop it."""
    built = layer(AdversarialDropout, clip=10.0)
    optimizer = torch.optim.Adam(built.parameters(), lr=0.05)
    x = torch.randn(64, 5, WIDTH)
    before = built.keep_probability(built.gate(x))[..., 0].mean()
    for _ in range(60):
        loss = (built(x)[..., 0] - x[..., 0] / 0.75).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert built.keep_probability(built.gate(x))[..., 0].mean() < before - 0.1


def test_it_is_the_identity_in_evaluation():
    x = torch.randn(3, 5, WIDTH)
    assert torch.equal(layer(AdversarialDropout).eval()(x), x)


def test_the_model_itself_learns_through_the_mask_as_ever():
    x = torch.randn(3, 5, WIDTH).requires_grad_()
    torch.manual_seed(5)
    y = layer(AdversarialDropout)(x)
    y.sum().backward()
    # Detached: only what the mask lets through.
    torch.testing.assert_close(x.grad, torch.where(y != 0, 1 / 0.75, 0.0))
