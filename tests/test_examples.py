"""Every example runs as a user would run it, and says what its text promises."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PROMISES = {
    "plain_loop.py": (
        r"step 30: validation \d\.\d+, clean gap [+-]\d",
        r"transformer\.h\.0\.mlp.*LearnedDropout",
    ),
    "hugging_face_trainer.py": (r"eval_gap", r"'penalty'", r"'p/attention_output'", r"\nclean gap [+-]\d"),
    "lightning_trainer.py": (
        r"\ngap -?\d",
        r"keep/mlp_output 0\.",
        r"p/attention_output 0\.",
        r"\npenalty 0",
    ),
}


def test_every_example_is_run_here():
    # A task's file is no program; tests/tasks/test_own_task.py runs it.
    assert {file.name for file in EXAMPLES.glob("*.py")} == {*PROMISES, "my_task.py"}


@pytest.mark.parametrize("name", PROMISES)
def test_an_example_runs_and_shows_what_it_promises(name, environment, tmp_path):
    file = EXAMPLES / name
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 60
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(file)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for promise in PROMISES[name]:
        assert re.search(promise, done.stdout), f"{promise} is not in:\n{done.stdout}"
    # Imports take most of it; a busy machine may take a few times as long.
    assert time.monotonic() - started < 60
    assert not list(tmp_path.iterdir())
