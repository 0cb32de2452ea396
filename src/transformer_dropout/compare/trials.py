"""Compare what people train themselves: a Python function or a command, arm by arm and seed by seed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..recipe import Recipe
from ..runs.files import write_json
from ..runs.record import read_metrics, read_run
from ..runs.trial_command import check_command
from ..runs.trial_config import (
    TrialArm,
    TrialConfig,
    checked_arm,
    digests,
    find_function,
    place_of,
    programs_in,
    rules_of,
)
from .cells import Cell, Outcome, make_cells
from .comparison import opened_comparison, run_cells
from .engines import Resources, choose_engine
from .records import Comparison, load_comparison
from .report import write_report

TRIALS = "transformer_dropout.runs.trials"

Arms = Mapping[str, Recipe | Iterable[Mapping[str, Any]] | str] | Iterable[TrialArm | Mapping[str, Any]]


def compare(
    train: Callable[[Any], object] | str,
    *,
    arms: Arms,
    seeds: int | Sequence[int] = 3,
    out: str | Path = "runs/compare",
    on: str | None = None,
    settings: Mapping[str, Any] | None = None,
    steps: int | None = None,
    metric: str | None = None,
    reference: str | None = None,
    gpus: int | None = None,
) -> Comparison:
    """Train every arm with every seed by a training of your own, and write a report of which won.

    Each run is a process of its own that finds the function in its file; the same call again does only what
    is missing.

    Args:
        train: a function of a `Trial` at the top of a file, or its place, ``"finetune.py:train"``.
        arms: recipes, or names of ready ones, by their arms' names; or a list of ``{name, recipe,
            settings}``.
        seeds: how many, or which.
        out: the comparison's folder.
        on: where, as ``local:4`` or ``dask:tcp://head:8786``; None for this machine.
        settings: handed to every arm's training; an arm's own come first.
        steps: handed to the training.
        metric: what is compared, as ``val_f1`` or ``val_score:higher``; None for the first that is reported.
        reference: the arm that the others are compared with; None for the best plain dropout.
        gpus: GPUs of a run; None for one where there is any.

    Returns:
        the comparison, whose folder holds ``report.html``.

    Raises:
        InputError: for what cannot be compared, and when a run failed.
    """
    place = train if isinstance(train, str) else place_of(train)
    folder = Path(out)
    configs = trial_configs(arms, settings=settings, steps=steps, metric=metric, function=place)
    about = {"command": f"td.compare({place!r})", "reference": checked_reference(reference, configs)}
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    engine = choose_engine(on, folder, Resources(gpus=gpus))
    cells = make_cells(configs, numbers, folder, module=TRIALS)
    with opened_comparison(folder, configs, numbers, about):
        outcomes = run_cells(cells, engine, on_event=ignore, on_outcome=ignore)
        check_pairs(cells)
    failed = [outcome for outcome in outcomes if outcome.status != "finished"]
    if len(failed) < len(outcomes):
        write_report(folder)
    if failed:
        raise InputError(
            f"{len(failed)} of {len(outcomes)} runs did not finish; the first, {failed[0].cell.name}: "
            f"{failed[0].reason or failed[0].status}. The same call tries them again."
        )
    return load_comparison(folder)


def ignore(*event: Cell | Outcome | dict) -> None:
    """Listen to nothing."""


def trial_configs(
    arms: Arms,
    *,
    settings: Mapping[str, Any] | None = None,
    steps: int | None = None,
    metric: str | None = None,
    function: str | None = None,
    command: str | None = None,
) -> list[TrialConfig]:
    """Return the run configs of arms of which each is trained by one function or command.

    Raises:
        InputError: when the function or a recipe is not found, or the command cannot tell runs apart.
    """
    listed = list_arms(arms)
    if function is not None:
        find_function(function)
        place, _, name = function.rpartition(":")
        programs = [Path(place).resolve()]
        function = f"{programs[0]}:{name}"
    else:
        assert command is not None
        names = set(settings or {}).union(*(arm.settings for arm in listed))
        check_command(command, names, has_recipes=any(rules_of(arm.recipe) for arm in listed))
        programs = programs_in(command)
    return [
        TrialConfig(
            name=arm.name,
            recipe=rules_of(arm.recipe),
            settings={**(settings or {}), **arm.settings},
            steps=steps,
            metric=metric,
            function=function,
            command=command,
            programs=digests(programs),
        )
        for arm in listed
    ]


def list_arms(arms: Arms) -> list[TrialArm]:
    """Return arms in their one form.

    Raises:
        InputError: for what is no arm, or none at all.
    """
    if isinstance(arms, Mapping):
        arms = [{"name": name, "recipe": recipe} for name, recipe in arms.items()]
    given = [replace_recipe(arm) for arm in arms]
    listed = [
        arm if isinstance(arm, TrialArm) else checked_arm(arm, number, {}) for number, arm in enumerate(given)
    ]
    if not listed:
        raise InputError("There are no arms; give them as {'none': [], 'lima': 'lima'}.")
    return listed


def replace_recipe(arm: Any) -> Any:
    """Return an arm with its recipe, if that is an object, as plain data."""
    if isinstance(arm, Mapping) and isinstance(arm.get("recipe"), Recipe):
        return {**arm, "recipe": arm["recipe"].to_data()}
    return arm


def checked_reference(reference: str | None, configs: Sequence[TrialConfig]) -> str | None:
    """Return the reference arm.

    Raises:
        InputError: when it is none of the arms.
    """
    names = [config.name for config in configs]
    if reference is not None and reference not in names:
        raise InputError(f"The reference {reference!r} is no arm; the arms are: {', '.join(names)}.")
    return reference


def check_pairs(cells: Sequence[Cell]) -> None:
    """Record in each finished trial whether the arms of its seed began with the same evaluation.

    Where the evaluation before the first step, which ``trial.report(step=0, ...)`` tells, is missing, nothing
    is known.
    """
    by_seed: dict[int, list[Cell]] = {}
    for cell in cells:
        if cell.finished:
            by_seed.setdefault(cell.config.seed, []).append(cell)
    for group in by_seed.values():
        found = [first_evaluation(cell) for cell in group]
        known = len(group) > 1 and all(first is not None for first in found)
        paired = all(first == found[0] for first in found) if known else None
        for cell in group:
            record = read_run(cell.folder)
            assert record is not None
            if record["checks"]["paired_start"] != paired:
                record["checks"]["paired_start"] = paired
                write_json(cell.folder / "run.json", record)


def first_evaluation(cell: Cell) -> dict[str, float] | None:
    """Return what a trial measured before its first step; None where it did not say."""
    path = cell.folder / "metrics.jsonl"
    row = next(iter(read_metrics(path)), {}) if path.is_file() else {}
    measured = {name: value for name, value in row.items() if name.startswith("val_")}
    return measured if row.get("step") == 0 and measured else None
