"""`td.tune`: search the settings of a training of the user's own, from Python."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..cells import Cell
from ..engines import Resources, choose_engine
from ..trials import Arms, place_of, trial_configs
from .page import write_page
from .results import Found, found_by_all
from .space import Method, settings_of
from .study import Budget, at_once, open_study
from .study import tune as search
from .value import metric_name


def tune(
    train: Callable[[Any], object] | str,
    *,
    arms: Arms,
    space: Mapping[str, Mapping[str, Any] | list[Any]],
    trials: int = 40,
    out: str | Path = "runs/tune",
    on: str | None = None,
    settings: Mapping[str, Any] | None = None,
    steps: int | None = None,
    metric: str | None = None,
) -> list[Found]:
    """Search settings of a training of your own, every arm under the same budget.

    The same call again continues; several processes may make it at once on one folder.

    Args:
        train: a function of a `Trial` at the top of a file, or its place, ``"finetune.py:train"``.
        arms: as `compare` takes them.
        space: by setting, ``{"low": 1e-5, "high": 1e-3, "log": True}`` or a list of values;
            ``recipe.*.p`` is the rate of every rule.
        trials: settings tried for each arm.
        out: the search's folder; it ends in ``tuning.html``.
        on: where, as ``local:4`` or ``dask:tcp://head:8786``; None for this machine.
        settings: handed to every training beside what is searched.
        steps: handed to the training.
        metric: what is searched by, as ``val_f1:higher``; None for the first that is reported.

    Returns:
        what was found, by arm: ``found.best.values``, ``found.tried``.

    Raises:
        InputError: for what cannot be searched, and when no trial of an arm has a value.
    """
    place = train if isinstance(train, str) else place_of(train)
    folder = Path(out)
    shared = settings_of(Path("space"), dict(space))
    configs = trial_configs(arms, settings=settings, steps=steps, metric=metric, function=place)
    methods = [Method(arm=config, settings=shared) for config in configs]
    engine = choose_engine(on, folder, Resources())
    budget = Budget(trials=trials, together=at_once(engine, len(methods), folds=1))
    search(methods, folder, engine, budget, on_event=ignore, on_trial=ignore_trial)
    found, without = found_by_all(methods, lambda name: open_study(folder, name, budget))
    about = {
        "command": f"td.tune({place!r})",
        "metric": metric_name(folder),
        "trials": trials,
        "folds": 1,
        "quasi_random": budget.quasi_random,
    }
    write_page(found, folder, about, "td.compare the settings above with seeds=5, which are fresh")
    if without:
        raise InputError(f"{without[0]} The others are in {folder / 'tuning.html'}.")
    return found


def ignore(cell: Cell, event: dict) -> None:
    """Listen to no run."""


def ignore_trial(method: Method, trial: Any) -> None:
    """Listen to no trial."""
