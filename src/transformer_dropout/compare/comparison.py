"""A comparison: arms x seeds, run where missing, remembered in its folder."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from joblib import Parallel, delayed

from ..errors import InputError
from ..runs.files import clear_write_errors, write_json
from ..runs.run import check_config, prepare
from ..runs.run_config import RunConfig
from .cells import Cell, CellConfig, CellRunner, Outcome

FORMAT = 1


def check_arms(arms: list[RunConfig]) -> None:
    """Refuse arms that cannot be told apart or do not fit, before anything is written.

    Raises:
        InputError: naming the arm.
    """
    slugs: dict[str, str] = {}
    for arm in arms:
        if arm.slug() in slugs:
            raise InputError(
                f"Two arms are called {arm.name!r} and {slugs[arm.slug()]!r}; give each its own 'name:'."
            )
        slugs[arm.slug()] = arm.name
        check_config(arm)
    if len({arm.training.compile for arm in arms}) > 1:
        raise InputError(
            "Some arms use torch.compile and some do not, and the two draw different random masks; set "
            "training.compile alike."
        )


def open_comparison(folder: Path, arms: Sequence[CellConfig], seeds: list[int], about: dict) -> None:
    """Write ``comparison.json``, adding to what an earlier call of the same comparison left.

    Args:
        folder: the comparison's folder.
        arms: run configs, their seed not counted.
        seeds: the seeds.
        about: further keys: the command and the reference arm.

    Raises:
        InputError: when the folder holds something else, or an arm of the same name that differs.
    """
    path = folder / "comparison.json"
    fingerprints = {arm.name: replace(arm, seed=0).fingerprint() for arm in arms}
    before: dict = {}
    if path.exists():
        before = read_comparison(path)
        for name, fingerprint in fingerprints.items():
            if before["fingerprints"].get(name, fingerprint) != fingerprint:
                raise InputError(
                    f"{folder} holds another comparison, in which {name!r} is set up differently; choose "
                    "another folder with --out."
                )
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} exists and is no comparison; choose another folder with --out.")
    fingerprints = before.get("fingerprints", {}) | fingerprints
    with clear_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            path,
            {
                "format": FORMAT,
                "arms": list(fingerprints),
                "fingerprints": fingerprints,
                "seeds": sorted({*before.get("seeds", []), *seeds}),
                "created": before.get("created", datetime.now(UTC).isoformat(timespec="seconds")),
                **about,
            },
        )


def read_comparison(path: Path) -> dict:
    """Return the content of a ``comparison.json``.

    Raises:
        InputError: when it is damaged or of a newer format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        newer = content["format"] > FORMAT
        sound = newer or (isinstance(content["fingerprints"], dict) and isinstance(content["seeds"], list))
    except (ValueError, KeyError, TypeError):
        content, newer, sound = {}, False, False
    if not sound:
        raise InputError(f"{path} is damaged; choose another folder with --out.")
    if newer:
        raise InputError(
            f"{path} has a newer format than {FORMAT}; upgrade with: "
            "pip install --upgrade transformer-dropout"
        )
    return content


def different_data(configs: list[RunConfig]) -> list[RunConfig]:
    """Return one run config for each preparation of examples that they need."""
    return list({repr((config.task, config.model, config.data)): config for config in configs}.values())


def run_cells(
    cells: list[Cell],
    *,
    jobs: int | None = None,
    on_event: Callable[[Cell, dict], None],
    on_outcome: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run the cells that are not finished, several at once; one that crashes leaves the others alone.

    Args:
        cells: what to run.
        jobs: processes at once, one thread each; None for one a core.
        on_event: called with a cell and each event of its process.
        on_outcome: called as each cell ends.
    """
    unfinished = [cell.config for cell in cells if not cell.finished]
    for config in different_data([config for config in unfinished if isinstance(config, RunConfig)]):
        prepare(config)
    runner = CellRunner(on_event)
    # Threads only wait for their process; a cluster's joblib backend maps the same call.
    parallel = Parallel(
        n_jobs=jobs or os.cpu_count() or 1, backend="threading", return_as="generator_unordered"
    )
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        runner.stop(number)

    outcomes = []
    try:
        for number in before:
            signal.signal(number, stop)
        for outcome in parallel(delayed(runner)(cell) for cell in cells):
            outcomes.append(outcome)
            on_outcome(outcome)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return outcomes
