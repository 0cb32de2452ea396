import torch

import transformer_dropout as td
from transformer_dropout.layers import SparseReLU
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig


def test_it_is_the_rectifier_with_the_mean_of_what_is_left_as_penalty():
    layer, x = SparseReLU(), torch.tensor([[-1.0, 0.0, 2.0, 4.0]], requires_grad=True)
    assert layer(x).tolist() == [[0, 0, 2, 4]]
    penalty = layer.take_penalty()
    assert penalty.item() == 6 / 4
    penalty.backward()
    assert x.grad.tolist() == [[0, 0, 0.25, 0.25]]
    assert layer.eval()(x).tolist() == [[0, 0, 2, 4]]
    assert layer.pending_penalty is None


def sparsity(weight):
    """Return the share of hidden units that are 0 after some training under a weight."""
    torch.manual_seed(0)
    model = Decoder(17, DecoderConfig(width=16, heads=2, blocks=1, context=8))
    handle = td.regularize_(model, td.Recipe([td.Rule("mlp_hidden", SparseReLU, weight=weight)]))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    tokens = torch.randint(17, (8, 9))
    for _ in range(40):
        optimizer.zero_grad()
        (model(tokens[:, :-1], tokens[:, 1:]) + handle.penalty()).backward()
        optimizer.step()
    with handle.counting():
        model.eval()(tokens[:, :-1])
        return 1 - handle.metrics()["keep"]


def test_a_larger_weight_leaves_fewer_units():
    assert sparsity(3.0) > sparsity(0.0) + 0.1


def test_whoever_counts_sees_what_is_above_zero():
    layer, seen = SparseReLU(), []
    layer.observer = lambda keep, mask: seen.append((keep, mask))
    layer(torch.tensor([-1.0, 0.0, 0.5, 4.0], dtype=torch.float64))
    ((keep, mask),) = seen
    assert keep.tolist() == mask.tolist() == [0, 0, 1, 1] and mask.dtype == torch.float64
