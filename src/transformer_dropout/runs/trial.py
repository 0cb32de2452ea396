"""A run whose loop is the user's own: it is handed a `Trial`, and tells it how it goes."""

import math
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from ..recipe import Recipe
from .listener import Listener, RunProgress
from .record import FORMAT, Records, machine, read_metrics, read_run, versions
from .run import STOP_FILE, Interrupted
from .task import Metric
from .trial_config import TrialConfig, rules_of

# What a name says about which way is better, by the words that it is made of.
LOWER = {"loss", "nll", "perplexity", "ppl", "error", "mse", "mae", "rmse", "wer", "cer", "bpb", "bpc"}
HIGHER = {"accuracy", "acc", "f1", "r2", "auc", "auroc", "bleu", "precision", "recall", "mcc", "map"}

# What Trainers report beside metrics: how fast they were, which is another thing every time.
SPEEDS = ("runtime", "per_second")


class Diverged(InputError):
    """A value that the comparison needs is not finite."""


class Trial:
    """One run of your own training: what to train with, and whom to tell.

    Usage::

        def train(trial):
            torch.manual_seed(trial.seed)
            model = ...
            handle = td.regularize_(model, trial.recipe)
            for step in range(trial.steps):
                ...
                trial.report(step=step, val_loss=..., val_accuracy=...)

        td.compare(train, arms={"none": [], "lima": "lima"}, seeds=5, steps=1000, out="runs/mine")

    Args:
        recipe: a recipe, rules as plain data, or the name of a ready one.
        seed: of initialisation, data order and masks.
        folder: the run folder, made when missing; checkpoints of your own belong here.
        settings: anything that an arm sets besides its recipe.
        steps: optimizer steps to do; None where the training decides.
        metric: what is compared; None for the first reported name that begins with ``val_``.
        name: the arm's name.
        listener: whom to tell besides the records.

    Attributes:
        resumed: whether an earlier process began this run; what it saved lies in ``folder``.
    """

    def __init__(
        self,
        recipe: Recipe | Iterable[Mapping[str, Any]] | str = (),
        *,
        seed: int = 0,
        folder: str | Path,
        settings: Mapping[str, Any] | None = None,
        steps: int | None = None,
        metric: str | None = None,
        name: str = "trial",
        listener: Listener | None = None,
    ) -> None:
        config = TrialConfig(
            name=name,
            seed=seed,
            recipe=rules_of(recipe),
            settings=dict(settings or {}),
            steps=steps,
            metric=metric,
        )
        self._open(config, Path(folder), listener or Listener())

    @classmethod
    def of(cls, config: TrialConfig, folder: Path, listener: Listener) -> "Trial":
        """Return the trial of a config in its run folder."""
        trial = cls.__new__(cls)
        trial._open(config, folder, listener)
        return trial

    def _open(self, config: TrialConfig, folder: Path, listener: Listener) -> None:
        self.recipe, self.seed = Recipe.from_data(config.recipe), config.seed
        self.settings, self.steps = dict(config.settings), config.steps
        self.folder, self.listener = folder, listener
        self.metrics: dict[str, Metric] = {}
        self.finished = False
        self._asked, self._better = asked_metric(config.metric)
        self._row: dict[str, Any] = {}
        self._latest: dict[str, float] = {}
        self._started = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        self.resumed = (folder / "metrics.jsonl").is_file()
        self.records = Records(folder, writes=True)
        before = read_run(folder) or {}
        self.records.content = new_trial_record(config)
        # Whether a command prints its rows is known from the process that was killed.
        self.records.content["task"] |= {k: v for k, v in (before.get("task") or {}).items() if k == "rows"}
        self.records.update()

    def report(self, step: int, **values: Any) -> None:
        """Record how the training goes: one row of ``metrics.jsonl`` for each step.

        Names that begin with ``val_`` are of the validation data, and so are those that begin with ``eval_``,
        whose beginning becomes ``val_``. Several calls for one step make one row; a step that was reported
        before, as by a process that was killed later, begins the rows anew from there.

        Args:
            step: optimizer steps done; report 0 before the first, and the comparison can check that the arms
                of a seed start alike.
            values: numbers, or tensors of one.

        Raises:
            InputError: for what is no number, or a metric of which it is not known which way is better.
            Diverged: when a validation metric is not finite.
            Interrupted: when the run is asked to end, as `dropout tune` asks one that is below the median.
        """
        first, before = not self._row, self._row.get("step", 0)
        self.note(step, values)
        if first or step <= before:
            # A later row of a step is the true one, and what follows it is being done again.
            known = self.earlier_rows() if first else self.records.rows
            self.records.begin_with([row for row in known if row["step"] < step])
        self.records.append(self._row)
        shown = {name: self._latest.get(name) for name in ("loss", "val_loss", "keep")}
        self.listener.progress(RunProgress(step=step, steps=self.steps, **shown))
        if (self.folder / STOP_FILE).exists():
            raise Interrupted(signal.SIGTERM, step)

    def earlier_rows(self) -> list[dict[str, Any]]:
        """Return the rows that an earlier process of this run has reported."""
        path = self.folder / "metrics.jsonl"
        return read_metrics(path) if path.is_file() else []

    def note(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Take in what is reported of a step, and return the row that it makes, without writing it."""
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise InputError(f"trial.report(step={step!r}): steps are whole numbers from 0 on.")
        row = numbers(values)
        for name, value in row.items():
            if name.startswith("val_"):
                self._take_metric(name, value, step)
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._row = (self._row if self._row.get("step") == step else {"step": step}) | finite
        self._latest |= row
        return self._row

    def _take_metric(self, name: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise Diverged(f"{name} was {value} at step {step}.")
        plain = name.removeprefix("val_")
        decides = plain == self._asked or (self._asked is None and not self.metrics)
        better = self._better if decides and self._better else direction(plain)
        if better is None and decides:
            raise InputError(
                f"Which way is {name} better? Say --metric {name}:lower or --metric {name}:higher, or "
                f"metric={name + ':higher'!r}."
            )
        if better is not None and plain not in self.metrics:
            metric = {plain: Metric(name=plain, better=better)}
            # The one that decides stands first.
            self.metrics = metric | self.metrics if decides else self.metrics | metric
            self.records.content["task"]["metrics"] = [asdict(each) for each in self.metrics.values()]

    @property
    def step(self) -> int:
        """The step of the last report; 0 before the first."""
        return self._row.get("step", 0)

    def finish(self, evaluate: Callable[[], Mapping[str, Any]] | None = None, **values: Any) -> None:
        """End the run; without this call it ends with what was reported last.

        Args:
            evaluate: measures the trained model and returns metrics; it is called twice, and whether both
                calls gave the same to the last bit is recorded.
            values: metrics at the end.

        Raises:
            InputError: when no validation metric was ever reported.
        """
        # What was measured before the first step stays what it was, by which the arms' starts are compared.
        step = self.step or self.steps or int(bool(self._row))
        repeatable = None
        if evaluate is not None:
            first, second = numbers(evaluate()), numbers(evaluate())
            repeatable = first == second
            values = first | values
        if values:
            self.report(step, **values)
        wanted = self._asked or next(iter(self.metrics), None)
        if wanted not in self.metrics:
            missing = f"val_{self._asked}" if self._asked else "metric that begins with val_"
            raise InputError(
                f"Nothing to compare was reported: no {missing}; "
                "call trial.report(step=..., val_loss=...), or print such a line of JSON."
            )
        last = {name: value for name, value in self._latest.items() if math.isfinite(value)}
        self.records.content["checks"]["repeatable"] = repeatable
        self.records.update(
            status="finished",
            error=None,
            result={
                "step": step,
                **last,
                "evaluation_bit_equal": repeatable,
                "restored_step": None,
                "wall_seconds": time.perf_counter() - self._started,
            },
        )
        self.finished = True


def new_trial_record(config: TrialConfig) -> dict[str, Any]:
    """Return the content of ``run.json`` at the start of a trial."""
    return {
        "format": FORMAT,
        "status": "running",
        "name": config.name,
        "seed": config.seed,
        "fingerprint": config.fingerprint(),
        "task": {"name": "trial", "item": "run", "metrics": []},
        "config": config.to_data(),
        "versions": versions(),
        "machine": machine(),
        # None is what could not be verified.
        "checks": {"paired_start": None, "recipe_applied": None, "repeatable": None},
        "alarms": [],
        "notes": [],
        "error": None,
        "result": None,
    }


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return what is reported, by its names in the records, without how fast it was."""
    return {
        clear_name(name): as_number(name, value)
        for name, value in values.items()
        if not name.endswith(SPEEDS)
    }


def clear_name(name: str) -> str:
    """Return a reported name with ``val_`` at its beginning where others write ``eval_``."""
    return f"val_{name.removeprefix('eval_')}" if name.startswith("eval_") else name


def as_number(name: str, value: Any) -> float:
    """Return a reported value as a number."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        # A tensor's own way to its number says nothing about gradients.
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"trial.report({name}={value!r}): a number is needed.") from None


def asked_metric(text: str | None) -> tuple[str | None, Literal["lower", "higher"] | None]:
    """Return the name and the direction that ``val_NAME:higher`` asks for."""
    if text is None:
        return None, None
    name, colon, better = text.partition(":")
    if colon and better not in ("lower", "higher"):
        raise InputError(f"--metric {text!r}: behind the colon stands lower or higher.")
    return clear_name(name).removeprefix("val_"), better or None  # type: ignore[return-value]


def direction(name: str) -> Literal["lower", "higher"] | None:
    """Return which way a metric is better, as its name says it; None where it does not."""
    words = set(name.lower().replace("-", "_").split("_"))
    if words & LOWER:
        return "lower"
    return "higher" if words & HIGHER else None
