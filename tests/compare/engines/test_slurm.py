"""The jobs of a SLURM array: the file that sbatch is given, and the jobs themselves as local processes."""

import json
import pickle
import signal
import stat
import subprocess
import threading
from types import SimpleNamespace

import pytest

from transformer_dropout.compare.cells import Outcome, make_cells
from transformer_dropout.compare.comparison import opened_comparison, run_cells
from transformer_dropout.compare.engines import Resources, choose_engine, slurm
from transformer_dropout.compare.engines.slurm import Slurm, SlurmCell, has_gpus, option, outcome_of
from transformer_dropout.errors import InputError
from transformer_dropout.runs.record import read_metrics
from transformer_dropout.runs.run import run

submitit = pytest.importorskip("submitit")
pytestmark = pytest.mark.filterwarnings("ignore")
ABOUT = {"command": "dropout compare", "reference": None}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The programs of a cluster whose scheduler notes what it is given and runs nothing."""
    programs = tmp_path / "bin"
    programs.mkdir()
    answers = {
        "srun": "exit 1",
        "sbatch": f"cp $1 {tmp_path}/given.sh; echo Submitted batch job 42",
        "squeue": "printf '42_0\\n42_1\\n'",
        "scancel": f"echo $@ >> {tmp_path}/cancelled",
        "sinfo": "echo gpu:a100:4; echo '(null)'",
    }
    for name, text in answers.items():
        path = programs / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return tmp_path


def stopped_at_once(engine, cells):
    """Hand in the jobs and cancel them."""
    threading.Timer(0.5, engine.stop, (signal.SIGINT,)).start()
    return list(engine.run(cells))


def test_sbatch_is_given_one_array_that_may_be_requeued(cluster, tiny):
    out = cluster / "out"
    cells = make_cells([tiny("a"), tiny("b")], [0], out)
    engine = choose_engine("slurm:gpu,timeout_min=600,mem_gb=16", out, Resources(jobs=5, threads=2))
    assert not out.exists()
    with opened_comparison(out, [cell.config for cell in cells], [0], ABOUT):
        outcomes = stopped_at_once(engine, cells)
    assert [outcome.status for outcome in outcomes] == ["stopped", "stopped"]
    lines = (cluster / "given.sh").read_text().splitlines()
    for line in (
        "#SBATCH --array=0-1%2",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --job-name=dropout",
        "#SBATCH --mem=16GB",
        "#SBATCH --partition=gpu",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@90",
        "#SBATCH --time=600",
    ):
        assert line in lines
    assert (cluster / "cancelled").read_text().split() == ["42_0", "42_1"]


def test_jobs_that_still_run_are_waited_for_and_not_given_again(cluster, tiny):
    out = cluster / "out"
    cells = make_cells([tiny("a"), tiny("b")], [0], out)
    with opened_comparison(out, [cell.config for cell in cells], [0], ABOUT):
        # The first parent dies here; nobody cancels what it had handed in.
        stopped_at_once(choose_engine("slurm:cpu", out), cells)
        (cluster / "given.sh").unlink()
        stopped_at_once(choose_engine("slurm:cpu", out), cells)
        assert not (cluster / "given.sh").exists()
        # One that the scheduler no longer knows is handed in again, alone.
        (cluster / "bin" / "squeue").write_text("#!/bin/sh\necho 42_0\n")
        stopped_at_once(choose_engine("slurm:cpu", out), cells)
        assert "--array" not in (cluster / "given.sh").read_text()


def test_a_job_that_the_scheduler_lost_is_told_and_one_it_cannot_tell_of_is_waited_for(
    cluster, tiny, monkeypatch
):
    out = cluster / "out"
    cells = make_cells([tiny("a"), tiny("b")], [0], out)
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.0)
    engine = choose_engine("slurm:cpu", out)
    with opened_comparison(out, [cell.config for cell in cells], [0], ABOUT):
        (cluster / "bin" / "squeue").write_text("#!/bin/sh\necho controller is down >&2; exit 1\n")
        outcomes = stopped_at_once(engine, cells)
        assert [outcome.status for outcome in outcomes] == ["stopped", "stopped"]
        (cluster / "bin" / "squeue").write_text(
            "#!/bin/sh\necho slurm: Invalid job id specified >&2; exit 1\n"
        )
        outcomes = list(choose_engine("slurm:cpu", out).run(cells))
    assert [outcome.status for outcome in outcomes] == ["failed", "failed"]
    assert "its job 42_0 ended without a result; see" in outcomes[0].reason


def test_what_sbatch_refuses_is_one_sentence(cluster, tiny):
    out = cluster / "out"
    cells = make_cells([tiny("a")], [0], out)
    (cluster / "bin" / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: Memory specification can not be satisfied' >&2; exit 1\n"
    )
    engine = choose_engine("slurm:cpu,mem_gb=900", out)
    with (
        opened_comparison(out, [cell.config for cell in cells], [0], ABOUT),
        pytest.raises(
            InputError, match="slurm:cpu,mem_gb=900: sbatch refuses the jobs: Memory specification"
        ),
    ):
        list(engine.run(cells))


def test_gpus_are_asked_for_where_a_partition_has_any(cluster, tmp_path):
    assert has_gpus("gpu")
    assert choose_engine("slurm:gpu", tmp_path / "out", Resources(gpus=0)).parameters()["gpus_per_node"] == 0
    (tmp_path / "bin" / "sinfo").write_text("#!/bin/sh\necho '(null)'\n")
    assert not has_gpus("cpu")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cpu,minutes=5", "minutes"),
        ("cpu,timeout_min", "write KEY=VALUE"),
        ("cpu,slurm_bogus=1", "bogus"),
    ],
)
def test_what_sbatch_does_not_know_is_refused_before_there_is_a_folder(cluster, text, words):
    with pytest.raises(InputError, match=words):
        choose_engine(f"slurm:{text}", cluster / "out")
    assert not (cluster / "out").exists()


def test_a_machine_without_slurm_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="there is no srun here; start the comparison where sbatch works"):
        choose_engine("slurm:cpu", tmp_path / "out")


@pytest.mark.slow
def test_a_job_whose_time_is_over_saves_and_the_one_queued_again_continues(tmp_path, tiny, learned):
    out = tmp_path / "out"
    arms = [tiny("a", recipe=learned, steps=240, eval_every=10), tiny("diverges", lr=1e30)]
    cells = make_cells(arms, [0], out)
    jobs, messages = [], []

    def on_event(cell, event):
        messages.append(event.get("message"))
        if not jobs and event.get("step", 0) >= 10 and cell is cells[0]:
            # What SLURM sends some time before it ends a job.
            jobs.append(event["step"])
            numbers = json.loads((out / "slurm" / "jobs.json").read_text())
            number = numbers[str(cell.folder.resolve())]
            subprocess.run(["pkill", "-USR2", "-P", number], check=True)

    with opened_comparison(out, arms, [0], ABOUT):
        engine = Slurm("local", out, Resources(gpus=0), cluster="local")
        outcomes = run_cells(cells, engine, on_event=on_event, on_outcome=lambda outcome: None)
    by_name = {outcome.cell.config.name: outcome for outcome in outcomes}
    assert jobs
    assert by_name["a"].status == "finished", by_name["a"].reason
    assert "not finite at step 2" in by_name["diverges"].reason
    assert any(message and message.startswith("Continuing from step") for message in messages)
    run(arms[0], tmp_path / "here")
    ours, theirs = (read_metrics(place / "metrics.jsonl") for place in (cells[0].folder, tmp_path / "here"))
    assert [row["val_loss"] for row in ours] == [row["val_loss"] for row in theirs]


class Job:
    """A job as submitit shows it."""

    def __init__(self, folder, answer=None, error=None, ended=True):
        self.job_id, self.answer, self.error = "42_0", answer, error
        self.paths = SimpleNamespace(result_pickle=folder / "result", stderr=folder / "err")
        if ended:
            self.paths.result_pickle.touch()

    def exception(self):
        return self.error

    def result(self):
        return self.answer


def test_how_a_job_ended_is_told_of_its_cell(tmp_path):
    cell = SimpleNamespace(finished=False)
    assert outcome_of(SimpleNamespace(finished=True), None).status == "finished"
    assert outcome_of(cell, Job(tmp_path / "nowhere", ended=False)) == Outcome(
        cell=cell,
        status="failed",
        reason=f"its job 42_0 ended without a result; see {tmp_path / 'nowhere' / 'err'}",
    )
    assert outcome_of(cell, Job(tmp_path, answer="as it said")) == "as it said"
    for error, words in ((ValueError("first\n last \n\n"), "last"), (ValueError(" "), "ValueError")):
        found = outcome_of(cell, Job(tmp_path, error=error))
        assert (found.cell, found.status, found.reason) == (cell, "failed", f"{words} ({tmp_path / 'err'})")


def test_a_job_runs_its_cell_and_hands_over_the_rest(tmp_path, monkeypatch):
    made = []

    class Runner:
        def __init__(self, **words):
            made.append(words)
            self.waited = False

        def __call__(self, cell):
            return ("ran", cell)

        def stop_and_wait(self):
            self.waited = True

    monkeypatch.setattr(slurm, "CellRunner", Runner)
    job = slurm.SlurmCell(Resources(threads=3), tmp_path)
    assert job("a cell") == ("ran", "a cell")
    rest = job.checkpoint("a cell")
    assert job.runner.waited and rest.args == ("a cell",) and isinstance(rest.function, slurm.SlurmCell)
    again = pickle.loads(pickle.dumps(SlurmCell(Resources(threads=2), tmp_path)))
    assert (again.resources, again.directory) == (Resources(threads=2), tmp_path)
    assert made[0] == {"threads": 3, "shares_gpus": False, "folder": tmp_path}


def test_an_option_has_a_value_of_its_type():
    assert [option(text) for text in ("a=600", "b=x=y", "c=")] == [("a", 600), ("b", "x=y"), ("c", None)]
    for text in ("=5", "a"):
        with pytest.raises(InputError, match="write KEY=VALUE"):
            option(text)


def test_what_jobs_ask_for_may_be_changed(cluster, tmp_path):
    plain = choose_engine("slurm:gpu", tmp_path / "out").parameters()
    assert plain["slurm_additional_parameters"] == {"requeue": True} and plain["timeout_min"] == slurm.MINUTES
    assert "slurm_array_parallelism" not in plain and plain["gpus_per_node"] == 1
    changed = choose_engine("slurm:gpu,name=mine,timeout_min=5", tmp_path / "out", Resources(jobs=3))
    assert (changed.parameters()["name"], changed.parameters()["timeout_min"]) == ("mine", 5)
    assert (changed.parameters()["slurm_array_parallelism"], changed.jobs) == (3, 3)
    assert changed.executor(tmp_path)._executor.max_num_timeout == slurm.REQUEUES
