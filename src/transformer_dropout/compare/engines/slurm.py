"""SLURM, by submitit: one array of jobs, a job per cell, requeued when its time is over or its node dies."""

import json
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...errors import InputError
from ...runs.files import write_json
from ...yaml_file import parse_value
from ..cell_process import CellRunner
from ..cells import Cell, Outcome
from . import Resources

POLL_SECONDS = 1.0
# How often the scheduler is asked which jobs it still has; the folder, where their results appear, is free.
QUEUE_SECONDS = 30.0
# A job runs so long unless told otherwise, then saves and queues again, as often as it takes.
MINUTES = 240
REQUEUES = 1000


class Slurm:
    """Runs cells as the jobs of one array.

    The jobs do not need this process: started again, it finds those that still run.

    Args:
        text: the partition, and after commas what ``sbatch`` is to be told besides, in submitit's words:
            ``gpu,timeout_min=600,mem_gb=16,slurm_account=lab``.
        folder: the comparison's folder, which all nodes see.
        resources: what a run gets.
        cluster: ``local`` runs the same jobs as processes of this machine.

    Raises:
        InputError: when submitit is not installed, or this machine has no SLURM.
    """

    def __init__(self, text: str, folder: Path, resources: Resources, cluster: str = "slurm") -> None:
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise InputError(
                "--on slurm: needs submitit; run: pip install 'transformer-dropout[slurm]'"
            ) from None
        self.text = text
        self.partition, *options = text.split(",")
        self.folder, self.resources = folder.resolve(), resources
        self.jobs, self.stopping = resources.jobs, False
        self.options, self.cluster = dict(map(option, options)), cluster
        # What does not work is told before there is a folder.
        with TemporaryDirectory() as place:
            try:
                self.executor(Path(place))
            except RuntimeError:
                raise InputError(
                    f"--on slurm:{text}: there is no srun here; start the comparison where sbatch works."
                ) from None
            except (NameError, ValueError, TypeError) as error:
                raise InputError(f"--on slurm:{text}: {' '.join(str(error).split())}") from None

    def executor(self, folder: Path) -> Any:
        """Return submitit's executor with a folder for its files."""
        from submitit import AutoExecutor

        executor = AutoExecutor(folder=folder, cluster=self.cluster, slurm_max_num_timeout=REQUEUES)
        executor.update_parameters(**self.parameters())
        return executor

    def parameters(self) -> dict[str, Any]:
        """Return what the jobs ask for, in submitit's words."""
        gpus = self.resources.gpus
        wanted = {
            "name": "dropout",
            "timeout_min": MINUTES,
            "cpus_per_task": self.resources.threads,
            "gpus_per_node": int(has_gpus(self.partition)) if gpus is None else gpus,
            "slurm_partition": self.partition,
            "slurm_additional_parameters": {"requeue": True},
        }
        if self.resources.jobs is not None:
            wanted["slurm_array_parallelism"] = self.resources.jobs
        return wanted | self.options

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        """Run every cell and yield how each ended, the first to end first."""
        executor = self.executor(self.jobs_file.parent)
        known = self.known_jobs(executor._executor.job_class)
        jobs = {cell.folder: known[cell.folder] for cell in cells if cell.folder in known}
        new = [cell for cell in cells if cell.folder not in jobs]
        if new:
            array = self.handed_in(executor, new)
            jobs |= {cell.folder: job for cell, job in zip(new, array, strict=True)}
        write_json(self.jobs_file, {str(folder): job.job_id for folder, job in jobs.items()})
        pending = {cell.folder: cell for cell in cells}
        asked = time.monotonic()
        while pending and not self.stopping:
            time.sleep(POLL_SECONDS)
            ended = [folder for folder in pending if jobs[folder].paths.result_pickle.exists()]
            if time.monotonic() - asked > QUEUE_SECONDS:
                queued, asked = self.queued(jobs[folder] for folder in pending), time.monotonic()
                ended += [folder for folder in pending if jobs[folder].job_id not in queued]
            for folder in dict.fromkeys(ended):
                yield outcome_of(pending.pop(folder), jobs[folder])
        for folder, cell in pending.items():
            jobs[folder].cancel(check=False)
            yield Outcome(cell=cell, status="stopped")

    def handed_in(self, executor: Any, cells: Sequence[Cell]) -> list[Any]:
        """Return the new jobs of an array.

        Raises:
            InputError: when sbatch refuses it.
        """
        from submitit.core.utils import FailedJobError

        try:
            return executor.map_array(SlurmCell(self.resources, Path.cwd()), cells)
        except FailedJobError as error:
            said = " ".join(str(error).replace("sbatch: error:", "").split())
            raise InputError(f"--on slurm:{self.text}: sbatch refuses the jobs: {said}") from None

    def queued(self, jobs: Iterable[Any]) -> set[str]:
        """Return the numbers of those jobs that still run or wait; all, where nobody answers."""
        if self.cluster == "local":
            return {job.job_id for job in jobs if not job.done()}
        numbers = [job.job_id for job in jobs]
        arrays = ",".join(sorted({number.partition("_")[0] for number in numbers}))
        # Not sacct, which many clusters do not keep.
        command = ["squeue", "--noheader", "--array", "--format", "%i", "--jobs", arrays]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return set(numbers)
        if answer.returncode and "Invalid job id" not in answer.stderr:
            return set(numbers)
        return set(answer.stdout.split())

    def stop(self, number: int) -> None:
        """Cancel the jobs."""
        self.stopping = True

    @property
    def jobs_file(self) -> Path:
        """Where the numbers of the jobs stand."""
        return self.folder / "slurm" / "jobs.json"

    def known_jobs(self, job_class: Any) -> dict[Path, Any]:
        """Return the jobs of an earlier call that still run or wait, by their cells' folders."""
        if not self.jobs_file.is_file():
            return {}
        numbers = json.loads(self.jobs_file.read_text(encoding="utf-8"))
        jobs = {Path(folder): job_class(self.jobs_file.parent, n) for folder, n in numbers.items()}
        queued = self.queued(jobs.values())
        return {folder: job for folder, job in jobs.items() if job.job_id in queued}


class SlurmCell:
    """What a job calls."""

    def __init__(self, resources: Resources, directory: Path) -> None:
        # The scheduler gives every job its own GPUs.
        self.runner = CellRunner(threads=resources.threads, shares_gpus=False, folder=directory)
        self.resources, self.directory = resources, directory

    def __reduce__(self) -> tuple:
        return SlurmCell, (self.resources, self.directory)

    def __call__(self, cell: Cell) -> Outcome:
        """Run one cell here."""
        return self.runner(cell)

    def checkpoint(self, cell: Cell) -> Any:
        """Save, and ask for the rest to be done by the job that is queued again.

        submitit calls this when the job's time is nearly over, or when another takes its place.
        """
        from submitit.helpers import DelayedSubmission

        self.runner.stop_and_wait()
        return DelayedSubmission(SlurmCell(self.resources, self.directory), cell)


def outcome_of(cell: Cell, job: Any) -> Outcome:
    """Return how a job's cell ended; the folder is the truth, whatever the job says."""
    if cell.finished:
        return Outcome(cell=cell, status="finished")
    if not job.paths.result_pickle.exists():
        reason = f"its job {job.job_id} ended without a result; see {job.paths.stderr}"
        return Outcome(cell=cell, status="failed", reason=reason)
    error = job.exception()
    if error is None:
        return job.result()
    last = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
    return Outcome(cell=cell, status="failed", reason=f"{last.strip()} ({job.paths.stderr})")


def option(text: str) -> tuple[str, Any]:
    """Return the key and value of ``KEY=VALUE``."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise InputError(f"--on slurm: {text!r} has no value; write KEY=VALUE, such as timeout_min=600.")
    return key, parse_value(value)


def has_gpus(partition: str) -> bool:
    """Return whether any node of a partition offers GPUs."""
    command = ["sinfo", "--noheader", "--partition", partition, "--format", "%G"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "gpu" in listed
