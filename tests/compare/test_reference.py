"""Which arm the others are compared with, and which stands for no regularizer."""

from dataclasses import replace

import pytest

from transformer_dropout.compare.headline import headline
from transformer_dropout.compare.records import load_comparison
from transformer_dropout.compare.reference import bare_twin, reference_arm
from transformer_dropout.compare.verdicts import judge
from transformer_dropout.errors import InputError


def dropout(p, **rule):
    return [{"select": "mlp_output", "layer": "Dropout", "p": p, **rule}]


def test_reference_is_the_best_plain_dropout_at_the_lowest_weight_decay(folder, arm_of):
    arms = {
        "none": arm_of(-1.0),
        "p 0 is no dropout": arm_of(-2.0, dropout(0.0)),
        "strong decay": arm_of(-0.5, dropout(0.1), weight_decay=3.0),
        "falling decay": arm_of(-0.6, dropout(0.1), weight_decay="3,0"),
        "rising decay": arm_of(-0.6, dropout(0.1), weight_decay="0,3"),
        "penalised": arm_of(-0.7, dropout(0.1), training={"l1": 1e-5}),
        "mixed": arm_of(-0.9, [*dropout(0.1), {"select": "block", "layer": "StochasticDepth", "p": 0.1}]),
        "p=0.2": arm_of(0.0, dropout(0.2)),
        "scheduled": arm_of(-0.1, dropout({"linear": {"start": 0.3, "end": 0.0}})),
    }
    reference = reference_arm(load_comparison(folder.write(arms, seeds=(1, 2))))
    assert reference.name == "scheduled"
    assert reference.why == "it is the plain dropout with the lowest validation loss"


def test_one_lucky_seed_does_not_make_the_reference(folder, arm_of):
    path = folder.write({"a": arm_of(0.0, dropout(0.1)), "b": arm_of(-0.5, dropout(0.2))}, seeds=(1, 2))
    folder.change("b", 2, status="failed")
    comparison = load_comparison(path)
    assert reference_arm(comparison).name == "a"
    assert headline(comparison, judge(comparison)).startswith("a has the lowest validation loss")
    assert "among the arms that finished as many" in headline(comparison, judge(comparison))


def test_reference_asked_for_and_fallbacks(folder, arm_of):
    learned = [{"select": "mlp_output", "layer": "LearnedDropout"}]
    path = folder.write({"x": arm_of(0.0, learned), "bare": arm_of(0.3)}, seeds=(1, 2), reference="x")
    comparison = load_comparison(path)
    assert reference_arm(comparison).why == "it was asked for"
    assert reference_arm(replace(comparison, reference=None)).name == "bare"
    only = replace(comparison, arms=("x",), reference=None)
    assert reference_arm(only).name == "x"
    assert "comes first" in reference_arm(only).why
    with pytest.raises(InputError, match="Did you mean 'bare'"):
        reference_arm(replace(comparison, reference="baree"))


def test_where_higher_is_better_the_reference_has_the_highest(folder, arm_of, accuracy_task):
    arms = {"a": arm_of(0.0, dropout(0.1)), "b": arm_of(-0.5, dropout(0.2))}
    found = reference_arm(load_comparison(folder.write(arms, seeds=(1, 2), task=accuracy_task)))
    assert (found.name, found.why) == ("b", "it is the plain dropout with the highest validation accuracy")


def test_an_arm_of_another_width_does_not_stand_for_no_regularizer(folder, arm_of):
    path = folder.write({"bare": arm_of(0.3), "drop": arm_of(0.0, dropout(0.1))}, seeds=(1,))
    assert bare_twin(load_comparison(path), "drop") == "bare"
    run = load_comparison(path).of("bare")[0]
    config = run.record["config"]
    folder.change("bare", 1, config=config | {"model": config["model"] | {"width": 64}})
    assert bare_twin(load_comparison(path), "drop") is None


def test_the_reference_is_chosen_by_its_numbers_and_not_by_its_name(folder, arm_of):
    arms = {"z": arm_of(0.0, dropout(0.1)), "a": arm_of(-0.5, dropout(0.2)), "m": arm_of(-0.1, dropout(0.3))}
    comparison = load_comparison(folder.write(arms, seeds=(1, 2)))
    assert reference_arm(comparison).name == "a"
    asked = reference_arm(replace(comparison, reference="z"))
    assert (asked.name, asked.why) == ("z", "it was asked for")


def test_without_dropout_the_first_that_has_finished_is_the_reference(folder, arm_of):
    learned = [{"select": "mlp_output", "layer": "LearnedDropout"}]
    path = folder.write({"x": arm_of(0.0, learned), "y": arm_of(0.1, learned)}, seeds=(1,))
    folder.change("x", 1, status="failed")
    found = reference_arm(load_comparison(path))
    assert found.name == "y"
    assert found.why == "no finished arm is plain dropout or has an empty recipe, and it comes first"
    folder.change("y", 1, status="failed")
    assert reference_arm(load_comparison(path)).name == "x"


def test_a_dropout_of_rate_zero_stands_for_no_regularizer(folder, arm_of):
    learned = [{"select": "mlp_output", "layer": "LearnedDropout"}]
    other = [{"select": "mlp_output", "layer": "GaussianDropout", "p": 0.0}]
    arms = {"x": arm_of(0.0, learned), "other": arm_of(0.0, other), "zero": arm_of(0.3, dropout(0.0))}
    found = reference_arm(load_comparison(folder.write(arms, seeds=(1,))))
    assert (found.name, found.why) == ("zero", "no arm is plain dropout, and its recipe is empty")


def test_the_twin_of_no_arm_is_one_without_any_penalty(folder, arm_of):
    arms = {
        "pulled": arm_of(0.2, training={"l1": 1e-5}),
        "bare": arm_of(0.3),
        "drop": arm_of(0.0, dropout(0.1)),
    }
    arms |= {"pulled drop": arm_of(0.0, dropout(0.1), training={"l1": 1e-5})}
    comparison = load_comparison(folder.write(arms, seeds=(1,)))
    assert bare_twin(comparison, None) == bare_twin(comparison, "drop") == "bare"
    assert bare_twin(comparison, "pulled drop") == "pulled"
    folder.change("drop", 1, status="failed")
    folder.change("bare", 1, status="failed")
    assert bare_twin(load_comparison(folder.path), "drop") is None
