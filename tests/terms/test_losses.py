"""R-Drop by hand, and what two passes see."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import transformer_dropout as td

# R-Drop


def softmax(logits):
    total = sum(math.exp(v) for v in logits)
    return [math.exp(v) / total for v in logits]


def rdrop_by_hand(first, second, labels, weight):
    total = counted = 0
    for one, two, label in zip(first, second, labels, strict=True):
        if label == -100:
            continue
        p, q = softmax(one), softmax(two)
        there = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        back = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
        total += -math.log(p[label]) - math.log(q[label]) + weight * (there + back) / 2
        counted += 1
    return total / counted


logits = st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=4, max_size=4)


@given(logits, logits, st.floats(0, 5))
def test_rdrop_by_hand(first, second, weight):
    labels = [2, 0, -100, 1]
    result = td.rdrop_loss(
        torch.tensor(first, dtype=torch.float64),
        torch.tensor(second, dtype=torch.float64),
        torch.tensor(labels),
        weight,
    )
    assert result.item() == pytest.approx(rdrop_by_hand(first, second, labels, weight))


def random_logits(*shape, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.randn(2, *shape, dtype=dtype, requires_grad=True)


def test_rdrop_of_equal_logits_is_twice_the_cross_entropy():
    one, _ = random_logits(6, 4)
    labels = torch.arange(6) % 4
    assert td.rdrop_loss(one, one, labels, 3.0).item() == pytest.approx(
        2 * F.cross_entropy(one, labels).item()
    )


def test_rdrop_is_symmetric_and_its_gradient_is_right():
    labels = torch.tensor([0, 3, -100])
    one, two = random_logits(3, 4)
    assert td.rdrop_loss(one, two, labels, 2.0).item() == td.rdrop_loss(two, one, labels, 2.0).item()
    assert torch.autograd.gradcheck(lambda x: td.rdrop_loss(x[0], x[1], labels, 2.0), random_logits(3, 4))


def test_rdrop_of_tokens_is_rdrop_of_the_flat_batch():
    one, two = random_logits(2, 5, 3)
    labels = torch.randint(3, (2, 5))
    labels[0, 3:] = -100
    flat = td.rdrop_loss(one.flatten(0, 1), two.flatten(0, 1), labels.flatten(), 1.0)
    assert td.rdrop_loss(one, two, labels, 1.0).item() == flat.item()


def test_a_padding_label_of_ones_own_is_not_counted():
    one, two = random_logits(3, 4)
    without = td.rdrop_loss(one[:2], two[:2], torch.tensor([1, 2]), 1.0)
    with_it = td.rdrop_loss(one, two, torch.tensor([1, 2, 0]), 1.0, ignore_index=0)
    assert with_it.item() == pytest.approx(without.item())


def test_a_class_masked_with_minus_infinity_leaves_loss_and_gradient_finite():
    both = random_logits(3, 4).detach()
    both[..., 1] = -torch.inf
    both.requires_grad_()
    loss = td.rdrop_loss(both[0], both[1], torch.tensor([0, 2, 3]), 1.0)
    loss.backward()
    unmasked = both.detach()[..., [0, 2, 3]]
    assert loss.item() == pytest.approx(
        td.rdrop_loss(unmasked[0], unmasked[1], torch.tensor([0, 1, 2]), 1.0).item()
    )
    assert both.grad.isfinite().all()


def test_half_precision_logits_give_a_float32_loss():
    one, two = random_logits(3, 4, dtype=torch.bfloat16)
    labels = torch.tensor([0, 1, 2])
    loss = td.rdrop_loss(one, two, labels, 1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(
        td.rdrop_loss(one.double(), two.double(), labels, 1.0).item(), rel=1e-5
    )


def test_logits_and_labels_that_do_not_fit_are_refused():
    one, two = random_logits(3, 4)
    with pytest.raises(td.InputError, match=r"\(3, 4\) and \(3, 4\) and labels of shape \(2,\)"):
        td.rdrop_loss(one, two, torch.tensor([0, 1]), 1.0)


# Two passes


class Classifier(nn.Module):
    """Answers as Hugging Face models do."""

    def __init__(self, p=0.5):
        super().__init__()
        self.dropout, self.linear = nn.Dropout(p), nn.Linear(4, 3)
        self.seen = []

    def forward(self, x, scale=None, flag=True):
        self.seen.append(x.shape[0])
        assert flag is True
        return SimpleNamespace(logits=self.linear(self.dropout(x)) * (1 if scale is None else scale))


@pytest.mark.parametrize("doubled", [True, False])
def test_two_passes_see_independent_noise(doubled):
    torch.manual_seed(0)
    model = Classifier()
    one, two = td.two_passes(model, {"x": torch.randn(5, 4), "flag": True}, doubled=doubled)
    assert one.shape == two.shape == (5, 3)
    assert not one.equal(two)
    assert model.seen == ([10] if doubled else [5, 5])


@pytest.mark.parametrize("doubled", [True, False])
def test_two_passes_without_noise_agree_with_the_model(doubled):
    model, x, scale = Classifier(p=0.0), torch.randn(5, 4), torch.tensor(2.0)
    expected = model(x, scale=scale).logits
    for logits in td.two_passes(model, {"x": x, "scale": scale}, doubled=doubled):
        torch.testing.assert_close(logits, expected)


def test_two_passes_take_a_single_tensor_and_plain_logits():
    linear, x = nn.Linear(4, 3), torch.randn(5, 4)
    for doubled in (True, False):
        for logits in td.two_passes(linear, x, doubled=doubled):
            torch.testing.assert_close(logits, linear(x))


def test_inputs_without_a_common_batch_cannot_be_doubled():
    inputs = {"x": torch.randn(5, 4), "scale": torch.ones(1, 3)}
    with pytest.raises(td.InputError, match=r"\[1, 5\] as first dimensions"):
        td.two_passes(Classifier(), inputs, doubled=True)
    assert len(td.two_passes(Classifier(), inputs)) == 2


def test_training_with_rdrop_brings_the_two_passes_together():
    distances = []
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        model, x, labels = Classifier(), torch.randn(64, 4), torch.randint(3, (64,))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            td.rdrop_loss(*td.two_passes(model, {"x": x}), labels, weight).backward()
            optimizer.step()
        one, two = td.two_passes(model, {"x": x})
        distances.append((one.softmax(-1) - two.softmax(-1)).abs().mean().item())
    assert distances[1] < distances[0] / 2
