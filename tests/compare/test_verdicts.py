"""Verdicts: the words for what is shown, and for what is not."""

import json
import re
from dataclasses import replace

from transformer_dropout.compare.records import load_comparison
from transformer_dropout.compare.verdicts import failure, judge, more_seeds

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
    end = r"\(p [=<] \d\.\d+\)"
    assert re.fullmatch(rf"worse than dropout p=0.1 by 0\.\d+ nats {INTERVAL} {end}", verdicts["none"].text)
    assert re.fullmatch(
        rf"better than dropout p=0.1 by 0\.\d+ nats {INTERVAL} {end}", verdicts["learned"].text
    )
    assert re.fullmatch(
        rf"no difference shown \({NUMBER} {INTERVAL} nats, p = \d\.\d+\)", verdicts["twin"].text
    )
    assert verdicts["dropout p=0.1"].text == "reference"
    better = [float(value) for value in re.findall(NUMBER, verdicts["learned"].text.split(" by ")[1])]
    assert 0 < better[1] < better[0] < better[2]


def test_where_higher_is_better_a_rise_is_better_and_told_in_points(folder, accuracy_task):
    verdicts = judge(load_comparison(folder.write(task=accuracy_task))).verdicts
    assert [verdict.kind for verdict in verdicts.values()] == [
        "worse",
        "reference",
        "better",
        "no difference",
    ]
    assert re.match(rf"better than dropout p=0.1 by 1\.\d+ points {INTERVAL} ", verdicts["learned"].text)
    assert re.match(rf"worse than dropout p=0.1 by 7\.\d+ points {INTERVAL} ", verdicts["none"].text)


def test_a_difference_is_stated_or_two_percent_of_the_reference(folder):
    path = folder.write(seeds=(1, 2))
    assert judge(load_comparison(path)).to_show == 0.05
    record = json.loads((path / "comparison.json").read_text())
    (path / "comparison.json").write_text(json.dumps(record | {"difference": 0.2}))
    judgement = judge(load_comparison(path))
    assert judgement.to_show == 0.2
    assert judgement.verdicts["dropout p=0.1"].more_seeds is None
    assert judgement.verdicts["learned"].more_seeds >= 0


def test_a_killed_run_is_not_called_running(folder):
    path = folder.write(seeds=(1, 2))
    for seed in (1, 2):
        folder.change("learned", seed, status="running")
        (folder.cell("learned", seed) / ".run.lock").touch()
    verdict = judge(load_comparison(path)).verdicts["learned"]
    assert verdict.kind == "unfinished"
    assert verdict.text.startswith("killed: its process is gone; the same command continues it")


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
        "no verdict: the difference to drop is 0.500 nats at every seed",
    )


def test_why_a_run_does_not_count_is_one_line(folder):
    path = folder.write(seeds=(1, 2))
    for seed in (1, 2):
        folder.change("learned", seed, status="diverged", error="not finite at step 8\n\nlower the rate")
        folder.change("twin", seed, status="failed", error="Traceback (most ...):\n  x\nRuntimeError: no")
        folder.change("none", seed, status="interrupted", error=None)
    verdicts = judge(load_comparison(path)).verdicts
    assert verdicts["learned"].text == "diverged: not finite at step 8; 0 of 2 seeds finished"
    assert verdicts["twin"].text == "failed: RuntimeError: no; 0 of 2 seeds finished"
    assert verdicts["none"].text == "interrupted; 0 of 2 seeds finished"
    assert [verdicts[arm].kind for arm in ("learned", "twin", "none")] == ["failed", "failed", "unfinished"]
    run = load_comparison(path).of("dropout p=0.1")[0]
    assert failure(run) == "failed: finished without a finite validation loss"
    without = replace(run, task=replace(run.task, metrics=()))
    assert failure(without) == "failed: finished without any metric"


def test_seeds_are_planned_only_where_the_spread_is_known(folder):
    verdict = judge(load_comparison(folder.write(seeds=(1, 2, 3)))).verdicts["twin"]
    assert verdict.more_seeds == more_seeds(verdict.difference, 0.05) is not None
    for unknown in ({"standard_error": 0.0}, {"standard_error": None}, {"df": None}):
        assert more_seeds(replace(verdict.difference, **unknown), 0.05) is None
    assert more_seeds(None, 0.05) is more_seeds(verdict.difference, None) is None
