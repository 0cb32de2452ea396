"""The numbers of a run, as they come, for those who look at them elsewhere: TensorBoard, W&B, trackio."""

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError
from .run_config import RunConfig

Report = Callable[[Mapping[str, float], int], None]
# The project that runs are shown under.
PROJECT = "transformer-dropout"


@contextmanager
def reporting(
    config: RunConfig, folder: Path, step: int
) -> Iterator[Callable[[Mapping[str, Any], int], None]]:
    """Open whatever a run reports to, and yield what takes a line of its metrics and its step.

    Args:
        config: the run; ``training.report_to`` names who is told.
        folder: the run folder, which keeps their files.
        step: where the run begins or goes on.

    Raises:
        InputError: when a package is not installed.
    """
    names = dict.fromkeys(config.training.report_to or ())
    if config.training.tensorboard:
        names["tensorboard"] = None
    with ExitStack() as opened:
        told = [opened.enter_context(WAYS[name](config, folder, step)) for name in names]

        def report(metrics: Mapping[str, Any], at: int) -> None:
            numbers = flat_numbers(metrics) if told else {}
            for tell in told:
                tell(numbers, at)

        yield report


def flat_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return every number of a line of metrics under one name, those of a layer as ``keep/PATH``."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            inner = name.removesuffix("_by_site")
            found |= {f"{inner}/{key}": number for key, number in flat_numbers(value).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            found[name] = float(value)
    return found


@contextmanager
def tensorboard(config: RunConfig, folder: Path, step: int) -> Iterator[Report]:
    """Write event files into the folder; those behind the step are forgotten."""
    with import_or_refuse("torch.utils.tensorboard", "tensorboard").SummaryWriter(
        folder / "tensorboard", purge_step=step
    ) as events:

        def tell(numbers: Mapping[str, float], at: int) -> None:
            for name, number in numbers.items():
                events.add_scalar(name, number, at)

        yield tell


@contextmanager
def wandb(config: RunConfig, folder: Path, step: int) -> Iterator[Report]:
    """Log to a W&B run that a resumed run goes on with; ``WANDB_MODE=offline`` keeps it in the folder."""
    library = import_or_refuse("wandb", "wandb")
    opened = library.init(
        project=PROJECT,
        name=f"{config.name}, seed {config.seed}",
        id=own_name(folder),
        config=config.to_data(),
        dir=folder,
        resume="allow",
        reinit="create_new",
        settings=library.Settings(console="off"),
    )
    # A resumed run tells some steps again, and W&B's own steps only grow.
    opened.define_metric("*", step_metric="step")
    try:
        yield lambda numbers, at: opened.log({**numbers, "step": at})
    finally:
        opened.finish()


@contextmanager
def trackio(config: RunConfig, folder: Path, step: int) -> Iterator[Report]:
    """Log to a trackio run on this machine."""
    library = import_or_refuse("trackio", "trackio")
    library.init(
        project=PROJECT,
        name=f"{config.slug()}-{config.seed}-{own_name(folder)}",
        config=config.to_data(),
        resume="allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    try:
        yield lambda numbers, at: library.log(dict(numbers), step=at)
    finally:
        library.finish()


WAYS: dict[str, Callable[..., Any]] = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}


def own_name(folder: Path) -> str:
    """Return a short name that the same folder always has."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:10]


def import_or_refuse(module: str, extra: str) -> Any:
    """Return a module.

    Raises:
        InputError: when its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"training.report_to names {extra}, which is not installed; run: "
            f"pip install 'transformer-dropout[{extra}]'"
        ) from None
