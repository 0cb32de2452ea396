"""Which table a run fits, and how it is split."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...runs.task import Splits
from ..content_split import split_by_content
from .table import NumberTable, read_table

DIABETES = "diabetes"
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


@dataclass(frozen=True, kw_only=True)
class TableData:
    """The table of one run.

    Args:
        source: ``diabetes``, which comes with the package, or a CSV whose first line names its columns.
        target: the column to predict; None is the last one.
        columns: those to predict it from; None is all others.
        train_rows: use only the first so many training rows; None uses all. They lie in a fixed order that
            is as good as random, so a larger number adds to a smaller one.

    Raises:
        InputError: for a limit below 2, or a target that is to predict itself.
    """

    source: str = DIABETES
    target: str | None = None
    columns: tuple[str, ...] | None = None
    train_rows: int | None = None

    def __post_init__(self) -> None:
        if self.train_rows is not None and self.train_rows < 2:
            raise InputError(f"data.train_rows is {self.train_rows}, but it must be at least 2, or null.")
        if self.columns is not None and (not self.columns or self.target in self.columns):
            raise InputError(
                f"data.columns is {list(self.columns)}; name one column or more, without the target."
            )
        if self.columns is not None and self.target is None:
            raise InputError("data.columns needs data.target beside it: --set data.target=NAME")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a table, standardised: the training rows have mean 0 and variance 1 in every column.

    Attributes:
        inputs: (rows, columns) float32.
        targets: (rows,) float32.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


def prepare_table(config: TableData) -> Splits:
    """Read the table and split it; the same rows give the same splits, in whatever order they stand.

    Raises:
        InputError: for a file that is no table of numbers, or too small a one.
    """
    path = Path(__file__).with_name("diabetes.csv") if config.source == DIABETES else Path(config.source)
    table = columns_in_use(path, config)
    inputs, targets = table.values[:, :-1], table.values[:, -1]
    parts = split_by_content((row.tobytes() for row in table.values), SHARES)
    if config.train_rows is not None and config.train_rows > len(parts["train"]):
        raise InputError(
            f"data.train_rows is {config.train_rows}, but {config.source} has {len(parts['train'])} rows to "
            "train on: --set data.train_rows=null uses all"
        )
    parts["train"] = parts["train"][: config.train_rows]
    for name, rows in parts.items():
        if len(np.unique(targets[rows])) < 2:
            raise InputError(
                f"{path} is too small: the {len(rows)} rows for {name} do not hold two different values of "
                f"{table.columns[-1]}."
            )
    manifest = {
        name: {"rows": len(rows), "sha256": hashlib.sha256(table.values[rows].tobytes()).hexdigest()}
        for name, rows in parts.items()
    }
    scaled = standardised(inputs, parts["train"]), standardised(targets[:, None], parts["train"])[:, 0]
    splits = {
        name: Rows(inputs=as_tensor(scaled[0][rows]), targets=as_tensor(scaled[1][rows]))
        for name, rows in parts.items()
    }
    about = {"source": config.source, "columns": list(table.columns[:-1]), "target": table.columns[-1]}
    return Splits(**splits, manifest=about | manifest)


def columns_in_use(path: Path, config: TableData) -> NumberTable:
    """Return the columns that are used, the target last."""
    if config.columns is not None:
        assert config.target is not None
        return read_table(path, (*config.columns, config.target))
    table = read_table(path)
    target = table.columns[-1] if config.target is None else config.target
    if target not in table.columns:
        # Reading that column alone says which ones there are.
        return read_table(path, (target,))
    others = tuple(name for name in table.columns if name != target)
    if not others:
        raise InputError(f"{path} has one column; a target needs others to be predicted from.")
    return NumberTable(columns=(*others, target), values=table.of((*others, target)))


def standardised(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return columns with mean 0 and variance 1 over the training rows; one that is constant there is 0."""
    spread = values[train].std(0)
    return (values - values[train].mean(0)) / np.where(spread > 0, spread, np.inf)


def as_tensor(values: np.ndarray) -> Tensor:
    """Return numbers as float32."""
    return torch.from_numpy(values.astype(np.float32))
