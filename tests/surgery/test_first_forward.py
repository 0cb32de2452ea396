"""The first training forward says at which places of a recipe no layer acted."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import transformer_dropout as td
from transformer_dropout.errors import InputError
from transformer_dropout.surgery._first_forward import FirstForward, note

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


def watched(*paths):
    """A watch on places of a model, and its entries."""
    model = Detour()
    first = FirstForward(model, [(td.Site(path=path, **HERE), model.get_submodule(path)) for path in paths])
    return model, first, first.reached


def test_what_has_ended_says_nothing_more():
    model, first, _ = watched("down", "other")
    first.end()
    first.tell()
    model(torch.ones(1, 8))
    assert first.told is True and not first.has_begun and hooks(model) == 0


def test_a_place_takes_note_of_training_of_sleep_and_of_graphs(monkeypatch):
    model, first, (place,) = watched("down")
    note(place, model.down.eval(), ())
    assert (place.asleep, place.acted, place.compiled, first.has_begun) == (True, False, False, False)
    note(place, model.down.train(), ())
    assert (place.acted, place.compiled, first.has_begun) == (True, False, True)
    _, _, (place,) = watched("down")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    note(place, model.down.eval(), ())
    assert (place.asleep, place.acted, place.compiled) == (False, False, False)
    note(place, model.down.train(), ())
    assert (place.asleep, place.acted, place.compiled) == (False, True, True)


def test_a_hook_that_a_graph_depends_on_stays_when_it_has_told():
    model, first, (down, other) = watched("down", "other")
    down.acted = down.compiled = other.acted = True
    first.tell()
    assert len(model.down._forward_pre_hooks) == 1 and not model.other._forward_pre_hooks
    first.end()
    assert hooks(model) == 0


@pytest.mark.parametrize(("count", "named"), [(3, "a, b, c"), (5, "a, b, c and 2 more")])
def test_a_few_places_are_named_and_the_others_counted(count, named):
    _, first, places = watched(*["down"] * 6)
    for place, name in zip(places, "abcdef", strict=True):
        place.name, place.acted = name, name > "abcdef"[count - 1]
    sentence = f"nothing at {named}: in the first training forward that did not run, or was in evaluation."
    with pytest.warns(UserWarning) as told:
        first.tell()
    assert [str(each.message) for each in told] == [f"The recipe did {sentence}"]


def test_rates_that_nothing_reads_are_nothing_too():
    reads = [SimpleNamespace(ran=False), SimpleNamespace(ran=True)]
    first = FirstForward(Detour(), [])
    first.reads = [("a rate", reads[0])]
    assert not first.has_begun
    with pytest.raises(InputError, match=r"acts on nothing: .* a rate did not run, or was in"):
        first.tell()
    first.told, first.reads = False, [("a rate", reads[0]), ("another", reads[1])]
    assert first.has_begun
    with pytest.warns(UserWarning, match="did nothing at a rate: in"):
        first.tell()
