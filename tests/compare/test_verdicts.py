"""Verdicts: which arm is the reference, and the wording of every kind of answer."""

import re
from dataclasses import replace

import pytest

from transformer_dropout.compare.records import load_comparison
from transformer_dropout.compare.verdicts import arm_verdicts, headline, judge, reference_arm, regime
from transformer_dropout.errors import InputError

NUMBER = r"-?\d+\.\d+"
INTERVAL = rf"\[{NUMBER}, {NUMBER}\]"


def dropout(p, **rule):
    return [{"select": "mlp_output", "layer": "Dropout", "p": p, **rule}]


def test_wording_of_better_worse_no_difference_and_reference(folder):
    verdicts = judge(load_comparison(folder.write())).verdicts
    kinds = {arm: verdict.kind for arm, verdict in verdicts.items()}
    assert kinds == {
        "none": "worse",
        "dropout p=0.1": "reference",
        "learned": "better",
        "twin": "no difference",
    }
    end = r"\(Holm p [=<] \d\.\d+\)"
    assert re.fullmatch(rf"worse than dropout p=0.1 by 0\.\d+ nats {INTERVAL} {end}", verdicts["none"].text)
    assert re.fullmatch(
        rf"better than dropout p=0.1 by 0\.\d+ nats {INTERVAL} {end}", verdicts["learned"].text
    )
    assert re.fullmatch(
        rf"no difference shown \({NUMBER} {INTERVAL} nats, Holm p = \d\.\d+\)", verdicts["twin"].text
    )
    assert verdicts["dropout p=0.1"].text == "reference"
    better = [float(value) for value in re.findall(NUMBER, verdicts["learned"].text.split(" by ")[1])]
    assert 0 < better[1] < better[0] < better[2]


def test_one_seed_is_not_enough(folder):
    verdicts = judge(load_comparison(folder.write(seeds=(4,)))).verdicts
    assert verdicts["learned"].text == "not enough seeds: 1 in common with dropout p=0.1"
    assert verdicts["learned"].kind == "not enough seeds"


def test_failed_and_missing_seeds_are_told(folder):
    path = folder.write(seeds=(1, 2, 3, 4))
    folder.change("learned", 2, status="diverged", error="loss is not finite at step 812")
    for seed in (1, 2, 3, 4):
        folder.change(
            "twin", seed, status="failed", error="Traceback (most ...):\n  x\nRuntimeError: no memory"
        )
        (folder.cell("none", seed) / "run.json").unlink()
    verdicts = judge(load_comparison(path)).verdicts
    assert verdicts["learned"].kind == "better"
    assert verdicts["learned"].text.endswith("; 3 of 4 seeds finished")
    assert verdicts["twin"].text == "failed: RuntimeError: no memory; 0 of 4 seeds finished"
    assert verdicts["none"].text == "not run; 0 of 4 seeds finished"


def test_a_running_arm_says_so(folder):
    path = folder.write(seeds=(1, 2))
    for seed in (1, 2):
        folder.change("learned", seed, status="running")
    assert judge(load_comparison(path)).verdicts["learned"].text == "running; 0 of 2 seeds finished"


def test_a_constant_difference_has_no_verdict(folder, arm_of):
    folder.noise = 0.0
    path = folder.write({"drop": arm_of(0.0, dropout(0.1)), "other": arm_of(0.5)}, seeds=(1, 2, 3))
    verdict = judge(load_comparison(path)).verdicts["other"]
    assert (verdict.kind, verdict.text) == (
        "no spread",
        "no verdict: the difference to drop is 0.500 at every seed",
    )


def test_reference_is_the_best_plain_dropout_at_the_lowest_weight_decay(folder, arm_of):
    arms = {
        "none": arm_of(-1.0),
        "p 0 is no dropout": arm_of(-2.0, dropout(0.0)),
        "strong decay": arm_of(-0.5, dropout(0.1), weight_decay=3.0),
        "falling decay": arm_of(-0.6, dropout(0.1), weight_decay="3,0"),
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
    assert judge(comparison).headline.startswith("a has the lowest validation loss")
    assert "among the arms that finished as many" in judge(comparison).headline


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


def test_the_regime_can_tell_when_dropout_beats_none(folder):
    found = regime(load_comparison(folder.write()))
    assert found.tells is True
    assert found.text.startswith(
        "This setting can tell regularizers apart: dropout p=0.1 beats none on validation (-0."
    )
    assert "20.5 passes over the training data." in found.text
    assert found.gap == pytest.approx(0.2 + 1.5 * 0.35)
    assert "validation ends 0.725 nats above training." in found.text


def test_the_regime_cannot_tell_when_dropout_is_no_better(folder, arm_of):
    path = folder.write({"none": arm_of(0.0), "drop": arm_of(0.2, dropout(0.1))})
    found = regime(load_comparison(path))
    assert found.tells is False
    assert found.text.startswith(
        "This setting cannot tell regularizers apart: drop is not shown to beat none ("
    )


def test_the_regime_is_unknown_without_a_twin_of_the_same_settings(folder, arm_of):
    path = folder.write({"none": arm_of(0.5, weight_decay=3.0), "drop": arm_of(0.0, dropout(0.1))})
    found = regime(load_comparison(path))
    assert found.tells is None
    assert "no finished arm has an empty recipe and the same settings as drop" in found.text


def test_the_regime_is_unknown_with_one_seed_or_without_dropout(folder, arm_of):
    comparison = load_comparison(folder.write(seeds=(1,)))
    assert "need 2 common seeds" in regime(comparison).text
    assert "no finished arm has plain dropout" in regime(replace(comparison, arms=("none", "learned"))).text


def test_few_passes_are_pointed_out(folder):
    path = folder.write(seeds=(1, 2))
    for name in ("none", "dropout p=0.1"):
        for seed in (1, 2):
            (folder.cell(name, seed) / "metrics.jsonl").write_text('{"step": 5, "epochs": 2.0}\n')
    assert "2.0 passes over the training data, fewer than the 16" in regime(load_comparison(path)).text


def test_headline_names_what_is_shown(folder):
    comparison = load_comparison(folder.write())
    assert re.fullmatch(
        rf"learned has the lowest validation loss \({NUMBER} nats a token, mean of 5 seeds\); against "
        r"dropout p=0.1, shown better: learned; shown worse: none; no difference shown: twin\.",
        judge(comparison).headline,
    )
    only = replace(comparison, arms=("none",))
    assert headline(only, "none", arm_verdicts(only, "none")).endswith("; it is the only arm.")


def test_headline_quotes_names_with_commas_and_counts_long_lists(folder, arm_of):
    arms = {f"bad {k}": arm_of(1.0 + k) for k in range(5)} | {
        "drop": arm_of(0.0, dropout(0.1)),
        "a, b": arm_of(0.9),
    }
    text = judge(load_comparison(folder.write(arms))).headline
    assert "shown better: no arm; shown worse: 6 arms." in text
    arms.pop("bad 4"), arms.pop("bad 3"), arms.pop("bad 2")
    comparison = replace(load_comparison(folder.path), arms=tuple(arms))
    assert "shown worse: bad 0, bad 1, “a, b”." in judge(comparison).headline


def test_nothing_finished_is_still_an_answer(folder):
    path = folder.write(seeds=(1,))
    for name in ("none", "dropout p=0.1", "learned", "twin"):
        folder.change(name, 1, status="failed")
    judgement = judge(load_comparison(path))
    assert (
        judgement.headline
        == "No run has finished with a validation loss, so there is nothing to compare yet."
    )
    assert judgement.reference.name == "none"
    assert judgement.verdicts["none"].text == "reference, failed; 0 of 1 seeds finished"
