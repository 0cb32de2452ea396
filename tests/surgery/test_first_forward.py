"""The first training forward says at which places of a recipe no layer acted."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import transformer_dropout as td
from transformer_dropout.errors import InputError

HERE = {"kind": "mlp_output", "access": "output", "width": 8}
RECIPE = td.Recipe([td.Rule("mlp_output", td.Dropout, p=0.5)])


class Detour(nn.Module):
    """An MLP with a second output layer that runs only when it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.other = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor, other: bool = False) -> Tensor:
        hidden = self.up(x).relu()
        return self.other(hidden) if other else self.down(hidden)


def regularized(*paths: str) -> tuple[Detour, td.Regularization]:
    model = Detour()
    return model, td.regularize_(model, RECIPE, sites=[td.Site(path=path, **HERE) for path in paths])


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_place_that_did_not_run_is_named_once():
    model, _ = regularized("down", "other")
    with pytest.warns(UserWarning, match=r"did nothing at other \(mlp_output\): in the first"):
        model(torch.ones(1, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.ones(1, 8))


def test_a_recipe_of_which_nothing_acted_is_an_error():
    model, _ = regularized("other")
    with pytest.raises(InputError, match=r"acts on nothing: .* other \(mlp_output\) did not run"):
        model(torch.ones(1, 8))


def test_a_part_that_was_left_in_evaluation_did_not_act():
    model, _ = regularized("down")
    model.down.eval()
    with pytest.raises(InputError, match=r"on nothing: .* ran in evaluation, inside a model in training"):
        model(torch.ones(1, 8))


def test_an_evaluation_before_the_training_is_no_part_left_in_evaluation():
    model, _ = regularized("other")
    model.eval()(torch.ones(1, 8), other=True)
    with pytest.raises(InputError, match=r"other \(mlp_output\) did not run"):
        model.train()(torch.ones(1, 8))


def test_where_everything_ran_nothing_is_said_and_no_hook_is_left():
    model, handle = regularized("down")
    before = hooks(model)
    model.eval()
    model(torch.ones(1, 8))
    assert hooks(model) == before
    model.train()
    model(torch.ones(1, 8))
    assert hooks(model) == before - 2
    handle.remove()
    assert hooks(model) == 0


def test_what_is_removed_before_it_ran_leaves_no_hook():
    model, handle = regularized("down")
    handle.remove()
    assert hooks(model) == 0


def test_a_copy_is_watched_on_its_own():
    model, _ = regularized("down")
    twin = copy.deepcopy(model)
    model(torch.ones(1, 8))
    with pytest.raises(InputError, match="acts on nothing"):
        twin(torch.ones(1, 8), other=True)


def test_a_rate_that_nothing_reads_in_training_is_named():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    td.set_rates(model, {"attention_weights": 0.5})
    model.layers[0].eval()
    with pytest.warns(UserWarning, match=r"did nothing at layers\.0\.self_attn \(attention_weights\)"):
        model(torch.ones(1, 3, 8))


def test_compiled_blocks_have_acted():
    model, handle = regularized("down", "other")
    model.down.compile(backend="eager")
    with pytest.warns(UserWarning, match=r"nothing at other"):
        model(torch.ones(1, 8))
    assert handle.placed


def test_a_model_that_is_compiled_as_a_whole_says_it_when_the_progress_moves():
    model, handle = regularized("down", "other")
    torch.compile(model, backend="eager", fullgraph=True)(torch.ones(1, 8))
    with pytest.warns(UserWarning, match=r"nothing at other"):
        handle.set_progress(0.5)


def test_no_rates_at_all_are_no_rates():
    with pytest.raises(InputError, match="No place is named"):
        td.set_rates(Detour(), {})
