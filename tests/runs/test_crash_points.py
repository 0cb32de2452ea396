"""A run that is ended before any one of its file operations goes on as if nothing had happened."""

import json
import os
import sys

import pytest
import torch

from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.runs.run import run

# Every way in which a run touches its folder.
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link"}


def in_child(work):
    """Do some work in a copy of this process; return its exit code."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def watched(folder, at, count_to):
    """Count the operations on a folder, and end the process before number ``at``; None only counts."""
    seen = 0
    own = str(folder)

    def hook(event, arguments):
        nonlocal seen
        if event in OPERATIONS and any(own in str(argument) for argument in arguments[:2]):
            seen += 1
            if at is not None and seen == at:
                os._exit(9)
            if at is None:
                with open(count_to, "w") as file:  # elsewhere, so that it is not counted
                    file.write(str(seen))

    sys.addaudithook(hook)


def numbers(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    kept = [{k: v for k, v in row.items() if k not in ("step_seconds", "peak_memory_bytes")} for row in rows]
    return kept, {**read_run(folder)["result"], "wall_seconds": 0}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_survives_its_end_before_every_file_operation(tmp_path, tiny, learned):
    config = tiny(recipe=learned, steps=4, eval_every=2, early_stopping=None)
    torch.set_num_threads(1)
    run(config, tmp_path / "whole")
    wanted = numbers(tmp_path / "whole")

    def count():
        watched(tmp_path / "counted", None, tmp_path / "count")
        run(config, tmp_path / "counted")

    assert in_child(count) == 0
    points = int((tmp_path / "count").read_text())
    assert points >= 50
    for at in range(1, points + 1):
        folder = tmp_path / f"ended-{at}"

        def ended(folder=folder, at=at):
            watched(folder, at, None)
            run(config, folder)

        assert in_child(ended) == 9, at
        assert in_child(lambda folder=folder: run(config, folder, resume=True)) == 0, at
        assert numbers(folder) == wanted, at
        left = {path.name for path in folder.iterdir() if path.name != ".run.lock"}
        assert left <= {"config.yaml", "run.json", "metrics.jsonl", "checkpoints", "model"}, (at, left)


@pytest.mark.parametrize("damage", ["cut", "text", "list", "gone"])
@pytest.mark.parametrize("file", ["run.json", "metrics.jsonl"])
def test_a_damaged_record_is_rebuilt_from_the_checkpoint(tmp_path, tiny, learned, file, damage):
    config = tiny(recipe=learned, steps=6, eval_every=2)
    run(config, tmp_path / "whole")
    folder = tmp_path / "run"
    run(config, folder)
    record = read_run(folder)
    (folder / "run.json").write_text(json.dumps(record | {"status": "running"}))
    path = folder / file
    content = path.read_text()
    if damage == "gone":
        path.unlink()
    else:
        path.write_text({"cut": content[: len(content) // 2], "text": "\x00 damaged", "list": "[]\n"}[damage])
    run(config, folder, resume=True)
    assert numbers(folder) == numbers(tmp_path / "whole")
