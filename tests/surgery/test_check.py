"""Places that prove what they are called, and some that are not."""

import dataclasses

import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model

P = 0.2


@pytest.fixture
def bert():
    return tiny_model("bert")


def test_every_place_of_a_model_is_what_it_is_called(bert):
    checks = td.check_sites(bert, tiny_inputs(bert))
    assert len(checks) == len(td.find_sites(bert))
    assert [check.problem for check in checks if not check.right] == []


def changed(model, kind, **facts):
    """Return the first site of a kind, with other facts."""
    return dataclasses.replace(next(s for s in td.find_sites(model) if s.kind == kind), **facts)


def problem(model, site):
    (check,) = td.check_sites(model, tiny_inputs(model), sites=[site])
    return check.problem or ""


def test_a_place_that_does_not_run_is_told(bert):
    bert.unused = nn.Linear(2, 2)
    site = td.Site(path="unused", kind="mlp_output", access="output", width=2)
    assert "did not run" in problem(bert, site)


def test_a_wrong_width_is_told(bert):
    assert "is said to be 7 wide" in problem(bert, changed(bert, "mlp_output", width=7))


def test_a_rate_that_nothing_reads_is_told(bert):
    bert.bert.ignored_drop = 0.1
    site = td.Site(path="bert", kind="embedding", access="rate", rate="bert.ignored_drop")
    assert "changes nothing in training" in problem(bert, site)


def test_a_place_of_another_kind_is_told(bert):
    site = dataclasses.replace(changed(bert, "mlp_output"), kind="embedding")
    assert "still depends on the tokens" in problem(bert, site)


def test_a_recipe_is_placed_only_where_its_places_are_right(bert):
    inputs, recipe = tiny_inputs(bert), td.Recipe([td.Rule("mlp_output", td.Dropout, p=P)])
    handle = td.regularize_(bert, recipe, inputs=inputs)
    assert len(handle.placed) == 2
    handle.remove()
    wrong = [changed(bert, "mlp_output", width=7)]
    with pytest.raises(td.InputError, match="is said to be 7 wide"):
        td.regularize_(bert, recipe, sites=wrong, inputs=inputs)
    assert not any(isinstance(module, td.Dropout) for module in bert.modules())


def test_what_the_model_itself_still_drops_is_in_the_report(bert):
    report = td.set_rates(bert, {"mlp_output": P}).report()
    assert "beside the recipe: bert.embeddings.dropout  embedding  0.1" in report


def test_a_check_leaves_no_trace(bert):
    keys, state = list(bert.state_dict()), torch.get_rng_state()
    td.check_sites(bert, tiny_inputs(bert))
    assert list(bert.state_dict()) == keys
    assert torch.equal(torch.get_rng_state(), state)
    assert not bert.training
