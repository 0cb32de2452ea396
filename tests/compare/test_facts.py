"""How it was measured, and what weakens it."""

import json

from transformer_dropout.compare.facts import cautions, facts, progress
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
