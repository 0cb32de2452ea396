"""``dropout compare`` and ``dropout report`` with real runs."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from transformer_dropout.compare.report import LiveReport
from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.runs.run import run


@pytest.fixture
def arms(config_file, tiny, learned):
    """Two run configs, as paths."""
    return [
        config_file(tiny("none"), "none.yaml"),
        config_file(tiny("learned", recipe=learned), "learned.yaml"),
    ]


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/metrics.jsonl")}


@pytest.mark.slow
def test_the_same_command_again_does_only_what_is_missing(command, here, tmp_path, arms):
    out = tmp_path / "out"
    first = command("compare", *arms, "--seeds", "2", "--out", "out", "--jobs", "2")
    assert first.code == 0, first.err
    assert "none, seed 1: finished" in first.out
    assert list(out.glob("*.html"))
    before = times(out)
    assert len(before) == 4
    assert command("compare", *arms, "--seeds", "2", "--out", "out").code == 0
    assert times(out) == before
    more = command("compare", *arms, "--seeds", "3", "--out", "out", "--jobs", "2")
    assert more.code == 0, more.err
    after = times(out)
    assert len(after) == 6
    assert {path: after[path] for path in before} == before
    assert json.loads((out / "comparison.json").read_text())["seeds"] == [0, 1, 2]
    assert_report_rebuilds(here, out)


def assert_report_rebuilds(here, out):
    for page in out.glob("*.html"):
        page.unlink()
    before = times(out)
    result = here("report", "out")
    assert result.code == 0, result.err
    assert "learned" in result.out
    assert list(out.glob("*.html"))
    assert times(out) == before


@pytest.mark.slow
def test_an_arm_that_crashes_is_reported_and_the_others_finish(command, tmp_path, arms, config_file, tiny):
    bad = config_file(tiny("diverges", lr=1e30), "bad.yaml")
    result = command("compare", *arms, bad, "--seeds", "1", "--out", "out", "--jobs", "2")
    assert result.code == 1
    assert "failed: diverges, seed 0: The loss was not finite at step 2" in result.out
    assert "Traceback" not in result.err
    assert read_run(tmp_path / "out" / "runs" / "diverges" / "seed-0")["status"] == "diverged"
    for name in ("none", "learned"):
        assert read_run(tmp_path / "out" / "runs" / name / "seed-0")["status"] == "finished"
    assert list((tmp_path / "out").glob("*.html"))


@pytest.mark.slow
def test_when_every_run_fails_the_page_ends_as_well(here, tmp_path, config_file, tiny, monkeypatch):
    # As where each run ends too soon after the one before for the page to be written.
    monkeypatch.setattr(LiveReport, "update", lambda report: None)
    bad = config_file(tiny("diverges", lr=1e30), "bad.yaml")
    result = here("compare", bad, "--seeds", "2", "--out", "out")
    assert result.code == 1 and "failed: diverges, seed 1" in result.out and "Traceback" not in result.err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "http-equiv" not in page  # it does not reload itself
    assert "The loss was not finite at step 2" in page


@pytest.mark.slow
def test_ctrl_c_stops_every_run_and_the_same_command_continues_them(
    start, command, tmp_path, config_file, tiny, learned
):
    configs = [
        tiny(name, recipe=learned, steps=400, eval_every=20, lr=lr) for name, lr in (("a", 0.01), ("b", 0.02))
    ]
    files = [config_file(config, f"{config.name}.yaml") for config in configs]
    arguments = ("compare", *files, "--seeds", "1", "--out", "out", "--jobs", "2")
    folders = [tmp_path / "out" / "runs" / config.name / "seed-0" for config in configs]
    process = start(*arguments)
    # A few checkpoints are kept, so which one is there when both have begun is a matter of speed.
    while not all(list(folder.glob("checkpoints/step-*[1-9]*")) for folder in folders):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues them" in out
    assert "Traceback" not in err
    for folder in folders:
        assert read_run(folder)["status"] == "interrupted"
        with FileLock(folder / ".run.lock").acquire(blocking=False):
            pass  # no process is left in it
    assert command(*arguments).code == 0
    for config, folder in zip(configs, folders, strict=True):
        run(config, tmp_path / config.name)
        ours, theirs = (read_metrics(place / "metrics.jsonl") for place in (folder, tmp_path / config.name))
        assert [row["val_loss"] for row in ours] == [row["val_loss"] for row in theirs]


OWN_TRAINING = """
import json, sys
seed, recipe = int(sys.argv[1]), open(sys.argv[2]).read()
for step in range(3):
    print(json.dumps({"step": step, "val_loss": 2.0 + seed - step / 10 - ("Dropout" in recipe) * step}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["{recipe}", "{recipe} {folder}"])
def test_a_command_of_the_users_own_is_compared(command, tmp_path, place):
    (tmp_path / "own.py").write_text(OWN_TRAINING)
    (tmp_path / "arms.yaml").write_text("[{name: none}, {name: lima, recipe: lima}]")
    text = f"'{sys.executable}' own.py {{seed}} {place}"
    result = command("compare", "--run", text, "--arms", "arms.yaml", "--seeds", "2", "--out", "out")
    assert (result.code, result.err) == (0, ""), result.out
    assert "lima" in result.out
    losses = [read_run(tmp_path / f"out/runs/lima/seed-{seed}")["result"]["val_loss"] for seed in (0, 1)]
    assert losses == [pytest.approx(-0.2), pytest.approx(0.8)]


def test_the_report_is_shown_before_the_first_run_ends(here, monkeypatch, tmp_path, arms):
    seen = []

    def open_page(address):
        page = Path(address.removeprefix("file://"))
        seen.append(('http-equiv="refresh"' in page.read_text(), list(tmp_path.rglob("metrics.jsonl"))))
        return True

    monkeypatch.setattr("webbrowser.open", open_page)
    assert here("compare", *arms, "--seeds", "1", "--out", "out", "--open").code == 0
    assert seen == [(True, [])]
    assert 'http-equiv="refresh"' not in (tmp_path / "out" / "report.html").read_text()
