"""The search itself: Optuna's studies in one journal, which several processes may join."""

import math
import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from filelock import FileLock

from ...errors import InputError
from ...runs.files import write_json
from ...runs.record import read_run
from ...runs.run import STOP_FILE
from ...runs.run_config import RunConfig
from ..cells import TRAINING, Cell, Outcome
from ..comparison import check_arms, prepare_configs, run_cells
from ..engines import Engine
from ..engines.folders import SEARCH
from ..trials import TRIALS
from .space import Method, Range, Search, refuse_values
from .value import deciding, rows_of

# Seeds of a comparison count from 0, so these are of no comparison.
FIRST_SEED = 10_000
# Where all studies of a search lie, and what makes a folder one.
JOURNAL = "study.journal"
# Seconds for which a trial that another machine began is taken to go on there.
OTHERS_TRUSTED = 3600.0
# A trial is pruned only when so many of its method have ended.
PRUNED_FROM = 5
# Runs at once where a cluster does not say how many it takes.
AT_ONCE = 2
# What a run keeps to go on from and to be used; of a trial that ended nobody asks for either.
LARGE = ("checkpoints", "model")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every method may spend, the same for all.

    Attributes:
        trials: settings tried.
        folds: parts of a cross-validation, each a run; 1 for one run on the validation split.
        together: trials of a method asked for at once, which know nothing of one another.
        prune: whether a run that is worse than the median at an evaluation is ended.
    """

    trials: int = 40
    folds: int = 1
    together: int = 2
    prune: bool = True

    @property
    def quasi_random(self) -> int:
        """How many trials are spread evenly before the search looks at results."""
        return min(16, max(1, self.trials // 2))


def at_once(engine: Engine, methods: int, folds: int) -> int:
    """Return how many trials of each method keep an engine busy while all methods take turns."""
    return max(1, math.ceil((engine.jobs or AT_ONCE) / (methods * folds)))


def tune(
    methods: Sequence[Method],
    out: Path,
    engine: Engine,
    budget: Budget,
    *,
    on_event: Callable[[Cell, dict], None],
    on_trial: Callable[[Method, Any], None],
) -> None:
    """Search every method until its budget is spent; what an earlier call did is not done again.

    Args:
        methods: what is searched.
        out: the folder of the search.
        engine: where runs are computed.
        budget: what each method may spend.
        on_event: called with a cell and what its process tells.
        on_trial: called with a method and each of its trials that ended.

    Raises:
        InputError: for arms, values or data that do not fit, or a folder that holds something else; nothing
            is written then.
    """
    if out.exists() and any(out.iterdir()) and not (out / JOURNAL).exists():
        raise InputError(f"{out} exists and is no search; choose another folder with --out.")
    arms = [method.arm for method in methods]
    check_arms(arms)
    refuse_values(methods)
    prepare_configs([arm for arm in arms if isinstance(arm, RunConfig)])
    studies = [MethodSearch(method, out, budget) for method in methods]
    give_id(out)
    while True:
        asked = [trial for study in studies for trial in study.next_trials()]
        if not asked:
            return
        cells = {cell.folder: (trial, cell) for trial in asked for cell in trial.cells}

        def event(cell: Cell, told: dict, cells: dict = cells) -> None:
            cells[cell.folder][0].look(cell)
            on_event(cell, told)

        outcomes = run_cells(
            [cell for _, cell in cells.values()], engine, on_event=event, on_outcome=lambda outcome: None
        )
        for trial in asked:
            own = [outcome for outcome in outcomes if cells[outcome.cell.folder][0] is trial]
            if any(outcome.status == "stopped" for outcome in own):
                raise KeyboardInterrupt
            on_trial(trial.method, trial.end(own))
            trial.clear()


def give_id(out: Path) -> None:
    """Give a search an id, by which a machine tells whether it sees the folder."""
    with FileLock(out / ".study.lock"):
        if not (out / SEARCH).exists():
            write_json(out / SEARCH, {"id": uuid4().hex})


@dataclass(kw_only=True)
class Running:
    """One trial while its runs go on.

    Attributes:
        study: Optuna's study of the method.
        trial: Optuna's trial.
        method: what is searched.
        cells: its runs, one per fold.
        prune: whether it may be ended early.
    """

    study: Any
    trial: Any
    method: Method
    cells: list[Cell]
    prune: bool
    told: int = -1
    pruned: bool = False

    def look(self, cell: Cell) -> None:
        """Tell the study of evaluations that are new, and ask a run to end that is below the median."""
        if not self.prune or self.pruned or cell is not self.cells[0]:
            return
        for row in rows_of(cell.folder):
            if row["step"] > self.told and isinstance(value := deciding(cell.folder, row), float):
                self.told = row["step"]
                self.trial.report(value, row["step"])
        if self.told > 0 and self.trial.should_prune():
            self.pruned = True
            for one in self.cells:
                (one.folder / STOP_FILE).touch()

    def end(self, outcomes: list[Outcome]) -> Any:
        """Tell the study how the trial ended; return it frozen."""
        import optuna

        folders = [outcome.cell.folder for outcome in outcomes if outcome.status == "finished"]
        found = [deciding(folder, (read_run(folder) or {}).get("result") or {}) for folder in folders]
        known = [value for value in found if value is not None]
        if self.pruned and len(known) < len(self.cells):
            return self.study.tell(self.trial, state=optuna.trial.TrialState.PRUNED)
        if len(known) < len(self.cells):
            reasons = [outcome.reason for outcome in outcomes if outcome.reason]
            self.trial.set_user_attr("reason", reasons[0] if reasons else "no value")
            return self.study.tell(self.trial, state=optuna.trial.TrialState.FAIL)
        return self.study.tell(self.trial, sum(known) / len(known))

    def clear(self) -> None:
        """Remove the weights of a trial that ended; its record, metrics and log stay."""
        for cell in self.cells:
            if cell.module == TRAINING:
                for name in LARGE:
                    shutil.rmtree(cell.folder / name, ignore_errors=True)


class MethodSearch:
    """The search of one method."""

    def __init__(self, method: Method, out: Path, budget: Budget) -> None:
        self.method, self.out, self.budget = method, out, budget
        self.study = open_study(out, method.arm.slug(), budget)
        # Two processes that look and then ask at once would both ask for the last trial, or for the same one.
        self.alone = FileLock(out / ".study.lock")
        with self.alone:
            for share in spread(len(method.settings), budget.quasi_random):
                values = {
                    key: search.at(at)
                    for (key, search), at in zip(method.settings.items(), share, strict=True)
                }
                self.study.enqueue_trial(values, skip_if_exists=True)
        self.left = [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.name == "RUNNING" and not alive(trial)
        ]

    def next_trials(self) -> list[Running]:
        """Return the trials to run next; none when the budget is spent."""
        import optuna

        found = []
        for frozen in self.left:
            # A process that died left it; its runs go on from their checkpoints.
            trial = optuna.trial.Trial(self.study, frozen._trial_id)
            told = -1 if frozen.last_step is None else frozen.last_step
            found.append(self.running(trial, frozen.number, told))
        self.left = []
        with self.alone:
            begun = sum(trial.state.name != "WAITING" for trial in self.study.get_trials(deepcopy=False))
            for number in range(begun, min(begun + self.budget.together, self.budget.trials)):
                # Drawn by its number, so that neither a second process nor a later one draws the same again.
                self.study.sampler = sampler(self.budget, seed=number)
                trial = self.study.ask()
                trial.set_user_attr("process", {"host": socket.gethostname(), "pid": os.getpid()})
                found.append(self.running(trial, trial.number))
        return found

    def running(self, trial: Any, number: int, told: int = -1) -> Running:
        """Return a trial with its runs; the study knows its evaluations up to a step."""
        values = {key: suggest_value(trial, key, search) for key, search in self.method.settings.items()}
        arm = self.method.configured(values)
        folder = self.out / "trials" / self.method.arm.slug() / f"{number:04d}"
        module = TRAINING if isinstance(arm, RunConfig) else TRIALS
        cells = []
        for fold in range(self.budget.folds):
            config = replace(arm, seed=FIRST_SEED)
            if self.budget.folds > 1:
                config = in_fold(config, fold, self.budget.folds)
            cells.append(Cell(config=config, folder=folder / f"fold-{fold}", module=module))
        return Running(
            study=self.study,
            trial=trial,
            method=self.method,
            cells=cells,
            prune=self.budget.prune,
            told=told,
            # Asked to end by a process that died before it said so.
            pruned=(cells[0].folder / STOP_FILE).exists(),
        )


def in_fold(config: Any, fold: int, folds: int) -> Any:
    """Return a run config that validates on one of several parts of its training split.

    Raises:
        InputError: when it is no run config.
    """
    if not hasattr(config, "training"):
        raise InputError(
            "--folds needs run configs, whose data are divided here; a run of your own divides its."
        )
    return replace(config, training=replace(config.training, folds=folds, fold=fold))


def open_study(out: Path, name: str, budget: Budget) -> Any:
    """Return Optuna's study of a method, from the journal that several processes may share.

    Raises:
        InputError: when Optuna is not installed, or the journal is damaged.
    """
    try:
        import optuna
    except ImportError:
        raise InputError("Tuning needs Optuna; run: pip install 'transformer-dropout[tune]'") from None
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    out.mkdir(parents=True, exist_ok=True)
    with quiet():
        try:
            storage = JournalStorage(JournalFileBackend(str(out / JOURNAL)))
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError):
            raise InputError(f"{out / JOURNAL} is damaged; choose another folder with --out.") from None
        pruner = optuna.pruners.MedianPruner(n_startup_trials=PRUNED_FROM)
        return optuna.create_study(study_name=name, storage=storage, pruner=pruner, load_if_exists=True)


def sampler(budget: Budget, seed: int) -> Any:
    """Return what chooses settings once the evenly spread ones are tried."""
    import optuna

    with quiet():
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=budget.quasi_random, constant_liar=True, multivariate=True
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from warning of parts that it calls experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def spread(dimensions: int, count: int) -> list[list[float]]:
    """Return points that fill the unit cube evenly (Sobol 1967), the same at every call."""
    return torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=0).draw(count).tolist()


def suggest_value(trial: Any, key: str, search: Search) -> Any:
    """Return a trial's value of one setting."""
    if not isinstance(search, Range):
        return trial.suggest_categorical(key, list(search.values))
    if search.whole:
        return trial.suggest_int(key, int(search.low), int(search.high), log=search.log)
    return trial.suggest_float(key, search.low, search.high, log=search.log)


def alive(trial: Any) -> bool:
    """Return whether the process that runs a trial may still do so."""
    owner = trial.user_attrs.get("process") or {}
    if owner.get("host") != socket.gethostname():
        # Another machine's, which cannot be asked.
        return time.time() - trial.datetime_start.timestamp() < OTHERS_TRUSTED
    try:
        os.kill(owner["pid"], 0)
    except OSError:
        return False
    return owner["pid"] != os.getpid()
