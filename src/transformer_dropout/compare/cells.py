"""One cell of a comparison: one arm, one seed, one process, one run folder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from ..runs.record import read_run


class CellConfig(Protocol):
    """What a cell asks of a run config: a dataclass that can be written and told apart."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    def to_yaml(self) -> str: ...
    def fingerprint(self) -> str: ...
    def slug(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class WrittenConfig:
    """A run config as text, which travels to a machine that knows nothing of its classes.

    Attributes:
        name, seed: the config's.
        text: its YAML.
        digest: its fingerprint.
        folder_name: its slug.
    """

    name: str
    seed: int
    text: str
    digest: str
    folder_name: str

    def to_yaml(self) -> str:
        """Return the config's text."""
        return self.text

    def fingerprint(self) -> str:
        """Return the config's digest."""
        return self.digest

    def slug(self) -> str:
        """Return the config's name as a folder name."""
        return self.folder_name


def config_as_text(config: CellConfig) -> WrittenConfig:
    """Return a config as text."""
    return WrittenConfig(
        name=config.name,
        seed=config.seed,
        text=config.to_yaml(),
        digest=config.fingerprint(),
        folder_name=config.slug(),
    )


TRAINING = "transformer_dropout.runs"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a comparison.

    Attributes:
        config: the run config with its seed.
        folder: the run folder.
        module: the module whose ``python -m`` trains such a folder.
    """

    config: CellConfig
    folder: Path
    module: str = TRAINING

    @property
    def name(self) -> str:
        """The run's name for people."""
        return f"{self.config.name}, seed {self.config.seed}"

    @property
    def finished(self) -> bool:
        """Whether the folder holds this run, finished."""
        record = read_run(self.folder)
        return (
            record is not None
            and record.get("status") == "finished"
            and record.get("fingerprint") == self.config.fingerprint()
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a cell ended.

    Attributes:
        status: ``stopped`` when somebody asked to stop before it was done.
        reason: one sentence when it failed.
    """

    cell: Cell
    status: Literal["finished", "failed", "stopped"]
    reason: str = ""


def make_cells(
    arms: Sequence[CellConfig], seeds: list[int], folder: Path, *, module: str = TRAINING
) -> list[Cell]:
    """Return the cells, seed by seed, so that an early look compares all arms."""
    return [
        Cell(
            config=replace(arm, seed=seed),
            folder=folder / "runs" / arm.slug() / f"seed-{seed}",
            module=module,
        )
        for seed in seeds
        for arm in arms
    ]
