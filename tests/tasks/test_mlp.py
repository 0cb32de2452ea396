import pytest
import torch

import transformer_dropout as td
from transformer_dropout.sites import find_sites
from transformer_dropout.tasks._mlp import MultilayerPerceptron


def test_it_is_linear_layers_with_relu_between_them():
    model = MultilayerPerceptron((6, 4, 3))
    first, second = model.layers[0], model.layers[2]
    x = torch.randn(5, 2, 3)
    expected = torch.relu(x.flatten(1) @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(model(x), expected)


def test_two_widths_make_a_linear_model():
    model = MultilayerPerceptron((6, 1))
    assert [parameter.shape for parameter in model.parameters()] == [(1, 6), (1,)]


def test_its_input_and_its_hidden_units_are_places():
    kinds = [(site.kind, site.width) for site in find_sites(MultilayerPerceptron((6, 5, 4, 3)))]
    assert kinds == [("input", 6), ("mlp_hidden", 5), ("classifier", 4)]
    assert [site.kind for site in find_sites(MultilayerPerceptron((6, 1)))] == ["input"]


def test_dropout_at_the_input_drops_the_input():
    torch.manual_seed(0)
    model = MultilayerPerceptron((6, 1))
    td.regularize_(model, td.Recipe([td.Rule("input", td.Dropout, p=0.5)]))
    with torch.no_grad():
        model.layers[0].weight.fill_(1.0)
        model.layers[0].bias.zero_()
        found = {round(value) for value in model.train()(torch.ones(200, 6))[:, 0].tolist()}
    assert found <= {0, 2, 4, 6, 8, 10, 12} and len(found) > 3


def test_what_follows_a_convolution_is_no_input():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 4), torch.nn.Linear(4, 3)
    )
    assert "input" not in {site.kind for site in find_sites(model)}


def test_a_gate_that_mixes_tokens_is_refused_with_the_one_to_use():
    model = MultilayerPerceptron((6, 8, 8, 3))
    td.regularize_(model, td.Recipe([td.Rule("mlp_hidden", td.LearnedDropout, heads=2)]))
    with pytest.raises(td.InputError, match=r"not a tensor of \(4, 8\).* use LearnedPositionwiseDropout"):
        model(torch.randn(4, 6))


def test_a_gate_that_reads_the_sample_alone_acts_on_hidden_units():
    torch.manual_seed(0)
    model = MultilayerPerceptron((6, 8, 8, 3))
    td.regularize_(model, td.Recipe([td.Rule("mlp_hidden", td.LearnedPositionwiseDropout, shift=1.0)]))
    x = torch.randn(4, 6)
    together = model.eval()(x)
    torch.testing.assert_close(together, torch.cat([model(sample[None]) for sample in x]))
    loss = model.train()(x).sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("layer", [td.Dropout, td.GaussianDropout])
def test_a_rate_acts_in_training_alone(layer):
    torch.manual_seed(0)
    model = MultilayerPerceptron((6, 8, 3))
    plain = model(x := torch.randn(4, 6))
    td.regularize_(model, td.Recipe([td.Rule("classifier", layer, p=0.5)]))
    assert torch.equal(model.eval()(x), plain)
    assert not torch.equal(model.train()(x), plain)
