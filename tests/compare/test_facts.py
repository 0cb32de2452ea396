"""How it was measured, and what weakens it."""

import json

from transformer_dropout.compare.facts import cautions, facts, progress, unfinished
from transformer_dropout.compare.records import load_comparison


def test_cautions_name_what_weakens_a_verdict(folder):
    path = folder.write(seeds=(1, 2))
    assert cautions(load_comparison(path)) == ["2 seeds are few: take every verdict as provisional below 3."]
    record = json.loads((folder.cell("twin", 2) / "run.json").read_text())
    record["result"] |= {"evaluation_bit_equal": False, "restored_step": 800}
    folder.change("twin", 2, result=record["result"], versions={"torch": "2.12.0"})
    metrics = folder.cell("twin", 2) / "metrics.jsonl"
    metrics.write_text('{"step": 2000, "lr": 0.001}\n')
    found = cautions(load_comparison(path))[1:]
    assert found == [
        "Two evaluations of the same weights differed in twin seed 2.",
        "twin seed 2 went back to an earlier step chosen by validation loss: that minimum flatters the arm.",
        "The learning rate ends above a fifth of its peak in twin seed 2.",
        "The runs differ in versions torch (2.12.0, 2.13.0), which changes random masks, last digits and "
        "time.",
    ]


def test_facts_say_how_it_was_measured(folder):
    found = facts(load_comparison(folder.write(seeds=(1, 2))))
    assert found["training split"] == f"400,000 tokens, 1,500,000 bytes, 812 documents, sha256 {'a' * 64}"
    assert found["evaluation"] == (
        "whole validation split, in evaluation mode, at the final step, never the minimum over training; "
        "two passes were bit-equal in 8 of 8 runs"
    )
    assert found["versions"] == "python 3.11.7, torch 2.13.0, transformer-dropout 0.1.0"
    assert found["command"] == "dropout compare arms.yaml --out OUT"


def test_facts_tell_a_partial_evaluation_and_a_restored_step(folder):
    path = folder.write(seeds=(1,))
    record = json.loads((folder.cell("twin", 1) / "run.json").read_text())
    record["config"]["training"]["eval_windows"] = 64
    folder.change("twin", 1, config=record["config"], result=record["result"] | {"restored_step": 800})
    assert facts(load_comparison(path))["evaluation"].startswith(
        "64 windows of the validation split, in evaluation mode, at the final step, or at the restored one"
    )


def test_runs_that_something_else_computed_are_told(folder):
    path = folder.write(seeds=(1, 2, 3))
    own = {"native": True, "blas": {"name": "MKL"}, "instructions": "AVX512"}
    for name in ("none", "dropout p=0.1", "learned", "twin"):
        for seed in (1, 2, 3):
            folder.change(name, seed, computed_by=own)
    assert cautions(load_comparison(path)) == []
    folder.change("twin", 2, computed_by=own | {"blas": {"name": "OpenBLAS"}})
    folder.change("none", 3, computed_by=None)
    found = cautions(load_comparison(path))
    end = "which changes random masks, last digits and time."
    assert found == [
        f"The runs differ in native (True, not recorded), {end}",
        f"The runs differ in blas name (MKL, OpenBLAS, not recorded), {end}",
        f"The runs differ in instructions (AVX512, not recorded), {end}",
    ]


def test_progress_counts_what_every_run_does(folder):
    path = folder.write(seeds=(1, 2))
    assert progress(load_comparison(path)) == "8 of 8 runs are finished."
    folder.change("none", 1, status="running")
    folder.change("none", 2, status="running")
    (folder.cell("none", 2) / ".run.lock").touch()
    folder.change("twin", 1, status="failed")
    (folder.cell("twin", 2) / "run.json").unlink()
    assert progress(load_comparison(path)) == (
        "4 of 8 runs are finished, 1 running, 1 killed, 1 failed, 1 not started."
    )


def arm(effect):
    return {"effect": effect, "recipe": []}


def checked(folder, name, seed, **checks):
    folder.change(
        name, seed, checks={"paired_start": None, "recipe_applied": None, "repeatable": None} | checks
    )


def test_what_a_training_of_the_users_own_could_verify_is_told(folder):
    path = folder.write({"a": arm(0.0), "b": arm(0.1)}, seeds=(1, 2, 3))
    assert "recipe applied" not in facts(load_comparison(path))
    for name in "ab":
        for seed in (1, 2, 3):
            checked(folder, name, seed, paired_start=True)
    checked(folder, "b", 2, paired_start=True, recipe_applied=False)
    checked(folder, "b", 3, paired_start=True, recipe_applied=True)
    found = facts(load_comparison(path))
    assert found["equal first evaluation of the arms of a seed"] == "yes"
    assert found["recipe applied"] == "yes in 1 runs, no in 1 runs, not verified in 4 runs"
    assert found["evaluation repeated with the same numbers"] == "not verified"
    assert cautions(load_comparison(path)) == ["A check failed in b seed 2: recipe applied."]


def test_of_many_runs_a_few_are_named(folder):
    path = folder.write({"a": arm(0.0)}, seeds=tuple(range(6)))
    for seed in range(5):
        checked(folder, "a", seed, repeatable=False)
    named = ", ".join(f"a seed {seed}" for seed in range(4))
    words = "evaluation repeated with the same numbers"
    assert cautions(load_comparison(path)) == [f"A check failed in {named} and 1 more runs: {words}."]
    checked(folder, "a", 4)
    assert cautions(load_comparison(path)) == [f"A check failed in {named}: {words}."]


def test_a_maximum_flatters_where_more_is_better_and_one_seed_is_few(folder, accuracy_task):
    path = folder.write({"a": arm(0.0)}, seeds=(1,), task=accuracy_task)
    result = json.loads((folder.cell("a", 1) / "run.json").read_text())["result"]
    folder.change("a", 1, result=result | {"restored_step": 100})
    assert cautions(load_comparison(path)) == [
        "1 seed is few: take every verdict as provisional below 3.",
        "a seed 1 went back to an earlier step chosen by validation accuracy: that maximum flatters the arm.",
    ]
    found = facts(load_comparison(path))
    assert found["evaluation"].endswith("; the test split was read once, at the end")
    assert found["test split"] == f"1,110 images, sha256 {'c' * 64}"
    assert found["task"] == "images" and found["pairing"].startswith("arms of one seed share")


def test_the_facts_of_a_training_of_the_users_own_say_nothing_of_ours(folder, accuracy_task):
    path = folder.write({"a": arm(0.0)}, seeds=(1, 4), task=accuracy_task | {"name": "trial"})
    found = facts(load_comparison(path))
    assert not found.keys() & {"pairing", "evaluation", "training numbers"}
    assert (found["task"], found["seeds"]) == ("trial", "1, 4")
    assert found["machine"] == "cpu EPYC, device cpu, threads 1, platform Linux"
    assert found["data"] == "source stdlib-docstrings"


def test_computers_that_differ_are_told_of_by_what_differs(folder):
    path = folder.write({"a": arm(0.0)}, seeds=(1, 2, 3))
    folder.change("a", 2, machine={"cpu": "Xeon", "device": "cuda", "threads": 2})
    found = cautions(load_comparison(path))
    names = ["machine device (cpu, cuda)", "machine cpu (EPYC, Xeon)", "machine threads (1, 2)"]
    assert [sentence.partition("differ in ")[2].partition(", which")[0] for sentence in found] == names
    assert facts(load_comparison(path))["machine"].startswith(
        "cpu EPYC / Xeon, device cpu / cuda, threads 1 / 2"
    )


def test_runs_that_do_not_count_are_told_of_with_the_reason(folder):
    path = folder.write({"a": arm(0.0)}, seeds=(1, 2, 3))
    folder.change("a", 2, status="failed", error="no memory")
    folder.change("a", 3, status="running")
    (folder.cell("a", 3) / ".run.lock").touch()
    found = unfinished(load_comparison(path))
    assert [(run.seed, why) for run, why in found if run.seed == 2] == [(2, "failed: no memory")]
    assert 1 not in [run.seed for run, _ in found]
