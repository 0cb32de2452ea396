"""The answer in sentences: who is best, what is shown, what the last step hides, and whether it can tell."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from transformer_dropout.compare.headline import disagreements, headline, regime
from transformer_dropout.compare.records import load_comparison
from transformer_dropout.compare.verdicts import judge

NUMBER = r"-?\d+\.\d+"
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def dropout(p, **rule):
    return [{"select": "mlp_output", "layer": "Dropout", "p": p, **rule}]


def answer(path):
    comparison = load_comparison(path)
    return headline(comparison, judge(comparison))


def test_the_regime_can_tell_when_dropout_beats_none(folder):
    found = regime(load_comparison(folder.write()))
    assert (found.tells, found.passes) == (True, pytest.approx(20.48))
    assert found.text.startswith(
        "This setting can tell regularizers apart: dropout p=0.1 beats none on validation "
    )
    assert "20.5 passes over the training data." in found.text
    assert found.gap == pytest.approx(0.2 + 1.5 * 0.35)
    assert "validation ends 0.725 nats above training." in found.text


def test_the_regime_cannot_tell_when_dropout_is_no_better(folder, arm_of):
    path = folder.write({"none": arm_of(0.0), "drop": arm_of(0.2, dropout(0.1))})
    found = regime(load_comparison(path))
    assert (found.tells, found.passes) == (False, pytest.approx(20.48))
    assert found.text.startswith(
        "This setting cannot tell regularizers apart: drop is not shown to beat none ("
    )


def test_the_regime_is_unknown_without_a_twin_of_the_same_settings(folder, arm_of):
    path = folder.write({"none": arm_of(0.5, weight_decay=3.0), "drop": arm_of(0.0, dropout(0.1))})
    found = regime(load_comparison(path))
    assert (found.tells, found.passes) == (None, pytest.approx(20.48))
    assert "no finished arm has an empty recipe and the same settings as drop" in found.text


def test_the_regime_is_unknown_with_one_seed_or_without_dropout(folder, arm_of):
    comparison = load_comparison(folder.write(seeds=(1,)))
    assert "need 2 common seeds" in regime(comparison).text
    assert regime(comparison).passes == pytest.approx(20.48)
    assert "mean of 1 seed)" in headline(comparison, judge(comparison))
    assert "no finished arm has plain dropout" in regime(replace(comparison, arms=("none", "learned"))).text


def test_few_passes_are_pointed_out(folder):
    path = folder.write(seeds=(1, 2))
    for name in ("none", "dropout p=0.1"):
        for seed in (1, 2):
            (folder.cell(name, seed) / "metrics.jsonl").write_text('{"step": 5, "epochs": 2.0}\n')
    assert "2.0 passes over the training data, fewer than the 16" in regime(load_comparison(path)).text


def test_headline_names_what_is_shown(folder):
    comparison = load_comparison(folder.write())
    assert re.match(
        rf"learned has the lowest validation loss \({NUMBER} nats per token, mean of 5 seeds\); against "
        r"dropout p=0.1, shown better: learned; shown worse: none; no difference shown: twin\.",
        headline(comparison, judge(comparison)),
    )
    only = replace(comparison, arms=("none",))
    assert headline(only, judge(only)).endswith("; it is the only arm.")


def test_headline_quotes_names_with_commas_and_counts_long_lists(folder, arm_of):
    arms = {f"bad {k}": arm_of(1.0 + k) for k in range(5)} | {
        "drop": arm_of(0.0, dropout(0.1)),
        "a, b": arm_of(0.9),
    }
    text = answer(folder.write(arms))
    assert "shown better: no arm; shown worse: 6 arms." in text
    arms.pop("bad 4"), arms.pop("bad 3"), arms.pop("bad 2")
    comparison = replace(load_comparison(folder.path), arms=tuple(arms))
    assert "shown worse: bad 0, bad 1, “a, b”." in headline(comparison, judge(comparison))


def test_nothing_finished_is_still_an_answer(folder):
    path = folder.write(seeds=(1,))
    for name in ("none", "dropout p=0.1", "learned", "twin"):
        folder.change(name, 1, status="failed")
    judgement = judge(load_comparison(path))
    assert (
        headline(load_comparison(path), judgement)
        == "No run has finished with a validation loss, so there is nothing to compare yet."
    )
    assert judgement.reference.name == "none"
    assert judgement.verdicts["none"].text == "reference, failed; 0 of 1 seeds finished"


def test_the_default_record_says_what_its_last_step_hides():
    comparison = load_comparison(EXPERIMENTS / "default")
    (found,) = disagreements(comparison, judge(comparison))
    assert "against none" in found
    assert "LearnedDropout -0.002, no difference (at the last step -0.142" in found
    assert headline(comparison, judge(comparison)).endswith(f". {found}")


def test_nothing_is_told_where_the_best_evaluation_agrees(folder, arm_of):
    arms = {"drop": arm_of(0.0, dropout(0.1)), "none": arm_of(0.0), "a": arm_of(-0.2, dropout(0.3))}
    comparison = load_comparison(folder.write(arms))
    assert disagreements(comparison, judge(comparison)) == []


def test_another_winner_at_the_best_evaluation_is_told(folder, arm_of):
    # Overfitting moves the end of the run away from its best.
    comparison = load_comparison(folder.write({"drop": arm_of(0.0, dropout(0.1)), "wild": arm_of(0.2)}))
    runs = []
    for run in comparison.runs:
        rows = [*run.metrics, {"step": 1, "val_loss": 1.0}] if run.name == "wild" else run.metrics
        runs.append(replace(run, metrics=rows))
    comparison = replace(comparison, runs=tuple(runs))
    found = disagreements(comparison, judge(comparison))
    assert found[0] == "At each run's best evaluation, wild has the lowest (1.000 nats per token)."
    assert "against drop, wild -1.4" in found[1]
    assert "better (at the last step +0.1" in found[1]
    # One seed has no interval, so nothing that could differ but who is best.
    alone = replace(comparison, seeds=(1,), runs=tuple(run for run in runs if run.seed == 1))
    assert disagreements(alone, judge(alone)) == found[:1]


def test_words_of_an_accuracy(folder, accuracy_task):
    path = folder.write(task=accuracy_task)
    assert re.match(
        rf"learned has the highest validation accuracy \({NUMBER} %, mean of 5 seeds\)", answer(path)
    )
    found = regime(load_comparison(path))
    assert found.tells is True
    assert re.search(rf"none minus dropout p=0.1: {NUMBER} \[.*\] points, p", found.text)
    assert "fewer than" not in found.text


def test_the_regime_reads_the_interval_of_the_table(folder):
    comparison = load_comparison(folder.write(seeds=(1, 2, 3)))
    text = judge(comparison).verdicts["none"].difference.estimate
    assert f"[{text.low:.3f}, {text.high:.3f}]" in regime(comparison).text
