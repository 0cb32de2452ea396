import torch

from transformer_dropout.layers import DropPath
from transformer_dropout.recipe import Recipe, Rule
from transformer_dropout.surgery.regularize import regularize_
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig


def test_a_sample_loses_the_whole_branch_or_none_of_it():
    torch.manual_seed(0)
    branch = torch.full((4000, 3, 5), 3.0)
    y = DropPath(0.25)(branch)
    assert torch.equal(y[:, :1, :1].expand_as(y), y)
    assert set(y.unique().tolist()) == {0.0, 4.0}
    assert abs((y[:, 0, 0] == 0).float().mean() - 0.25) < 0.035  # five standard errors


def test_samples_are_drawn_on_their_own_for_any_number_of_dimensions():
    torch.manual_seed(0)
    for shape in ((200,), (200, 3), (200, 2, 3, 4)):
        per_sample = DropPath(0.5)(torch.ones(shape)).flatten(1 if len(shape) > 1 else 0)
        assert 40 < (per_sample.reshape(200, -1)[:, 0] == 0).sum() < 160


def test_at_p_one_a_decoder_block_passes_its_input_on():
    torch.manual_seed(0)
    model = Decoder(19, DecoderConfig(width=8, heads=2, blocks=2, context=6))
    regularize_(model, Recipe([Rule(kind, DropPath, p=1.0) for kind in ("attention_output", "mlp_output")]))
    x = torch.randn(3, 6, 8)
    assert torch.equal(model.blocks[1](x), x)
    assert not torch.equal(model.eval().blocks[1](x), x)
