import math

import pytest
import torch
import torch.nn.functional as F

from transformer_dropout.errors import InputError
from transformer_dropout.layers import LearnedDropout, PrecomputedLearnedDropout
from transformer_dropout.recipe import Recipe, Rule
from transformer_dropout.surgery.regularize import regularize_
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

VOCABULARY = 23


def decoder(dtype=torch.float64, **shape):
    torch.manual_seed(0)
    model = Decoder(
        VOCABULARY, DecoderConfig(**({"width": 12, "heads": 3, "blocks": 2, "context": 7} | shape))
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def tokens(seed=0, length=7):
    return torch.randint(0, VOCABULARY, (3, length), generator=torch.Generator().manual_seed(seed))


def normalised(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    return scaled if norm.bias is None else scaled + norm.bias


def linear(x, layer):
    return x @ layer.weight.T if layer.bias is None else x @ layer.weight.T + layer.bias


def attended(x, attention):
    """Attend one head and one token at a time."""
    query, key, value = linear(x, attention.qkv).chunk(3, dim=-1)
    size, heads = x.shape[-1] // attention.heads, []
    for head in range(attention.heads):
        q, k, v = (part[..., head * size : (head + 1) * size] for part in (query, key, value))
        rows = []
        for t in range(x.shape[1]):
            scores = (k[:, : t + 1] @ q[:, t, :, None]).squeeze(-1) / math.sqrt(size)
            rows.append((scores.softmax(-1)[..., None] * v[:, : t + 1]).sum(1))
        heads.append(torch.stack(rows, dim=1))
    return linear(torch.cat(heads, dim=-1), attention.projection)


def naive(model, batch):
    """Compute the logits from the weights alone."""
    x = model.embedding.token.weight[batch] + model.embedding.position.weight[: batch.shape[1]]
    for block in model.blocks:
        x = x + attended(normalised(x, block.attention_norm), block.attention)
        hidden = linear(normalised(x, block.mlp_norm), block.mlp.expand)
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + linear(hidden, block.mlp.projection)
    return normalised(x, model.norm) @ model.embedding.token.weight.T


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("length", [7, 4, 1])
def test_the_logits_equal_an_explicit_forward(bias, length):
    model = decoder(bias=bias)
    batch = tokens(length=length)
    torch.testing.assert_close(model(batch), naive(model, batch))


def test_the_loss_is_the_cross_entropy_of_the_logits():
    model, targets = decoder(torch.float32), tokens(1)
    log_probabilities = model(tokens()).log_softmax(-1)
    picked = log_probabilities.gather(-1, targets[..., None])
    torch.testing.assert_close(model(tokens(), targets), -picked.mean())


def test_the_loss_is_float32_in_half_precision():
    model = decoder(torch.bfloat16)
    assert model(tokens()).dtype == torch.bfloat16
    loss = model(tokens(), tokens(1))
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(model(tokens()).flatten(0, 1).double(), tokens(1).flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_later_token_never_changes_an_earlier_logit():
    model, changed = decoder(), tokens()
    changed[:, 4:] = (changed[:, 4:] + 1) % VOCABULARY
    before, after = model(tokens()), model(changed)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4:], before[:, 4:], atol=1e-2)


def test_the_output_layer_is_the_token_embedding():
    model, absent = decoder(), VOCABULARY - 1
    batch = tokens() % absent
    before = model(batch)
    with torch.no_grad():
        model.embedding.token.weight[absent] *= 2  # no input token: only the output layer can see it
    after = model(batch)
    torch.testing.assert_close(after[..., absent], 2 * before[..., absent])
    assert torch.equal(after[..., :absent], before[..., :absent])
    assert len([p for p in model.parameters() if p.shape[0] == VOCABULARY]) == 1


def parameters_without_positions(width, heads, rule=None):
    """Count on a device that holds no numbers."""
    with torch.device("meta"):
        model = Decoder(50_257, DecoderConfig(width=width, heads=heads, blocks=26, context=200))
        regularize_(model, Recipe([rule] if rule else []))
    assert model.embedding.position.weight.numel() == 200 * width
    return sum(parameter.numel() for parameter in model.parameters()) - 200 * width


def test_the_parameter_counts_are_the_published_ones():
    learned = Rule("mlp_output", LearnedDropout, heads=9)
    precomputed = Rule("mlp_output", PrecomputedLearnedDropout, heads=9)
    assert parameters_without_positions(144, 9, learned) == 15_335_424
    assert parameters_without_positions(144, 9, precomputed) == 15_418_368
    assert parameters_without_positions(156, 12) == 15_441_192


def test_the_initial_loss_is_that_of_a_uniform_guess():
    torch.manual_seed(0)
    model = Decoder(VOCABULARY, DecoderConfig(width=48, heads=3, blocks=2, context=7))
    assert model(tokens(), tokens(1)).item() == pytest.approx(math.log(VOCABULARY), abs=0.1)


def test_projections_into_the_residual_stream_start_smaller_the_deeper_the_stack():
    torch.manual_seed(0)
    model = Decoder(VOCABULARY, DecoderConfig(width=96, heads=3, blocks=8, context=7, bias=True))
    for block in model.blocks:
        for projection in (block.attention.projection, block.mlp.projection):
            assert projection.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
        for layer in (block.attention.qkv, block.mlp.expand):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert layer.bias.count_nonzero() == 0


@pytest.mark.parametrize("bias", [False, True])
def test_biases_are_everywhere_or_nowhere(bias):
    names = [name for name, _ in decoder(bias=bias).named_parameters()]
    assert sum(name.endswith("bias") for name in names) == (2 * 6 + 1 if bias else 0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"width": 10, "heads": 3}, "model.width 10 is not divisible by model.heads 3"),
        ({"blocks": 0}, "model.blocks is 0, but it must be at least 1"),
        ({"context": -1}, "model.context is -1"),
    ],
)
def test_an_impossible_shape_is_refused(shape, message):
    with pytest.raises(InputError, match=message):
        DecoderConfig(**shape)
