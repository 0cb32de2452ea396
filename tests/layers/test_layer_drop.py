import torch

from transformer_dropout.layers import LayerDrop
from transformer_dropout.recipe import Recipe, Rule
from transformer_dropout.surgery.regularize import regularize_
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig


def test_the_whole_batch_is_kept_as_it_is_or_dropped():
    torch.manual_seed(0)
    layer, x = LayerDrop(0.3), torch.randn(4, 3, 2)
    results = [layer(x) for _ in range(2000)]
    kept = [torch.equal(y, x) for y in results]
    assert all(k or y.count_nonzero() == 0 for k, y in zip(kept, results, strict=True))
    assert abs(sum(kept) / 2000 - 0.7) < 0.052  # five standard errors


def test_a_dropped_batch_has_no_gradient():
    x = torch.randn(5, requires_grad=True)
    LayerDrop(1.0)(x).sum().backward()
    assert x.grad.count_nonzero() == 0


def test_at_p_one_a_decoder_block_passes_its_input_on():
    torch.manual_seed(0)
    model = Decoder(19, DecoderConfig(width=8, heads=2, blocks=2, context=6))
    x = torch.randn(3, 6, 8)
    expected = model.blocks[1](x)
    regularize_(model, Recipe([Rule("block", LayerDrop, p=1.0)]))
    torch.testing.assert_close(model.blocks[1](x), x)
    assert torch.equal(model.eval().blocks[1](x), expected)
