"""A comparison: arms x seeds, run where missing, remembered in its folder."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from ..errors import InputError
from ..json_file import read_object
from ..runs.cost import sketch_of_splits
from ..runs.files import clear_write_errors, write_json
from ..runs.memory_limit import check_fit
from ..runs.record import data_section, read_run
from ..runs.run import check_config, prepare
from ..runs.run_config import RunConfig
from .cells import Cell, CellConfig, Outcome, config_as_text
from .engines import Engine
from .progress import FolderWatch
from .same_data import other_data

FORMAT = 1


def check_arms(arms: Sequence[CellConfig]) -> None:
    """Refuse arms that do not fit, or that chance would tell apart, before anything is written.

    Raises:
        InputError: naming the arm.
    """
    check_names(arms)
    configs = [arm for arm in arms if isinstance(arm, RunConfig)]
    for config in configs:
        check_config(config)
    if len({config.training.compile for config in configs}) > 1:
        raise InputError(
            "Some arms use torch.compile and some do not, and the two draw different random masks; set "
            "training.compile alike."
        )


def check_names(arms: Sequence[CellConfig]) -> None:
    """Raise InputError when two names are one, or become one as folder names."""
    known: dict[str, str] = {}
    for arm in arms:
        twin = known.setdefault(arm.slug(), arm.name)
        if twin != arm.name or sum(other.name == twin for other in arms) > 1:
            raise InputError(f"Two arms are called {arm.name!r} and {twin!r}; give each its own 'name:'.")


def prepare_data(cells: Sequence[Cell]) -> None:
    """Make the data of unfinished runs ready once, not in every run.

    Raises:
        InputError: when they are not to be had, or are not those of all arms and of the runs finished before.
    """
    finished = [cell.finished for cell in cells]
    recorded = {
        f"the run in {cell.folder}": (read_run(cell.folder) or {}).get("data") or {}
        for cell, done in zip(cells, finished, strict=True)
        if done
    }
    unfinished = [cell.config for cell, done in zip(cells, finished, strict=True) if not done]
    prepare_configs([config for config in unfinished if isinstance(config, RunConfig)], recorded)


def prepare_configs(
    configs: list[RunConfig], recorded: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Make the data of runs ready, and refuse what a run would be spent on for nothing.

    Args:
        configs: of runs that are to be compared with each other.
        recorded: what records say of the data of further ones, by their names for people.

    Raises:
        InputError: when data are not to be had, a model that only its data can show to be wrong, or runs
            whose losses would not compare since their data differ.
    """
    data = dict(recorded or {})
    for config in different_data(configs):
        splits = prepare(config)
        if sketch_of_splits(config) is None:
            check_fit(config, splits)
        data[f"the arm {config.name!r}"] = data_section(splits.manifest)
    if other := other_data(data.items()):
        first, second, key = other
        raise InputError(
            f"The data of {first} and of {second} differ ({key}), so that their losses would not compare; "
            "give both the same 'data:' section, or compare each in a folder of its own."
        )


def different_data(configs: list[RunConfig]) -> list[RunConfig]:
    """Return one run config for each preparation of examples that they need."""
    return list({repr((config.task, config.model, config.data)): config for config in configs}.values())


@contextmanager
def opened_comparison(
    folder: Path, arms: Sequence[CellConfig], seeds: list[int], about: dict
) -> Iterator[None]:
    """Hold a comparison's folder for this process alone, and remember there what is compared.

    Args:
        folder: the comparison's folder.
        arms: run configs, their seed not counted.
        seeds: the seeds.
        about: further keys: the command and the reference arm.

    Raises:
        InputError: when the folder holds something else, an arm of the same name that differs, or is in use;
            nothing is written then.
    """
    check_names(arms)
    comparison_content(folder, arms, seeds, about)
    with clear_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".comparison.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise InputError(
                f"Another comparison is going on in {folder}; wait for it, or choose another folder with "
                "--out."
            ) from None
    try:
        with clear_write_errors(folder):
            write_json(folder / "comparison.json", comparison_content(folder, arms, seeds, about))
        yield
    finally:
        lock.release()


def comparison_content(
    folder: Path, arms: Sequence[CellConfig], seeds: list[int], about: dict
) -> dict[str, object]:
    """Return what ``comparison.json`` is to hold: these arms and seeds, and those of earlier calls."""
    path = folder / "comparison.json"
    fingerprints = {arm.name: replace(arm, seed=0).fingerprint() for arm in arms}
    slugs = {arm.slug(): arm.name for arm in arms}
    before: dict = {}
    if path.exists():
        before = read_comparison(path)
        for name, fingerprint in before["fingerprints"].items():
            if fingerprints.get(name, fingerprint) != fingerprint:
                raise InputError(
                    f"{folder} holds another comparison, in which {name!r} is set up differently; choose "
                    "another folder with --out."
                )
            # Names that differ may still be one as a folder's.
            other = slugs.get(replace(arms[0], name=name).slug(), name)
            if other != name:
                raise InputError(
                    f"{folder} holds an arm called {name!r}, which falls together with {other!r}; rename the "
                    "arm, or choose another folder with --out."
                )
    elif folder.exists() and not (folder.is_dir() and all(map(is_own, folder.iterdir()))):
        raise InputError(f"{folder} exists and is no comparison; choose another folder with --out.")
    fingerprints = before.get("fingerprints", {}) | fingerprints
    return {
        "format": FORMAT,
        "id": before.get("id") or uuid4().hex,
        "arms": list(fingerprints),
        "fingerprints": fingerprints,
        "seeds": sorted({*before.get("seeds", []), *seeds}),
        "created": before.get("created", datetime.now(UTC).isoformat(timespec="seconds")),
        **about,
    }


def is_own(path: Path) -> bool:
    """Return whether a file is what a comparison that was killed at once leaves."""
    return path.name.startswith(".comparison.")


def read_comparison(path: Path) -> dict:
    """Return the content of a ``comparison.json``.

    Raises:
        InputError: when it is damaged or of a newer format.
    """
    content = read_object(path, hint="choose another folder with --out")
    newer = isinstance(content.get("format"), int) and content["format"] > FORMAT
    kinds = {"format": int, "arms": list, "fingerprints": dict, "seeds": list}
    sound = all(isinstance(content.get(key), kind) for key, kind in kinds.items())
    if not newer and not (sound and all(type(seed) is int for seed in content["seeds"])):
        raise InputError(f"{path} is damaged; choose another folder with --out.")
    if newer:
        raise InputError(
            f"{path} has a newer format than {FORMAT}; upgrade with: "
            "pip install --upgrade transformer-dropout"
        )
    return content


def run_cells(
    cells: list[Cell],
    engine: Engine,
    *,
    on_event: Callable[[Cell, dict], None],
    on_outcome: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run the cells that are not finished, several at once; one that crashes leaves the others alone.

    Args:
        cells: what to run.
        engine: where.
        on_event: called with a cell and what its process tells, from another thread.
        on_outcome: called as each cell ends.
    """
    outcomes = []
    with passed_signals(engine), FolderWatch(cells, on_event).running() as watch:

        def take(cell: Cell, outcome: Outcome) -> None:
            watch.close(cell)
            # An engine knows the folder by its full name, which another machine would understand.
            outcomes.append(replace(outcome, cell=cell))
            on_outcome(outcomes[-1])

        missing = {}
        for cell in cells:
            if cell.finished:
                take(cell, Outcome(cell=cell, status="finished"))
            else:
                missing[cell.folder.resolve()] = cell
        if missing:
            asked = [
                replace(cell, folder=folder, config=config_as_text(cell.config))
                for folder, cell in missing.items()
            ]
            for outcome in engine.run(asked):
                take(missing[outcome.cell.folder], outcome)
    return outcomes


@contextmanager
def passed_signals(engine: Engine) -> Iterator[None]:
    """Pass Ctrl-C and a polite kill on to the engine instead of dying of them."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread is told of signals; another's caller keeps its own ways.
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        engine.stop(number)

    try:
        for number in before:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
