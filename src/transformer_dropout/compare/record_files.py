"""Reads the files of runs and comparisons: checked at the boundary, clean of what a terminal would obey."""

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..errors import InputError
from ..json_file import read_object
from ..schedule_data import schedule_from_data

FORMAT = 1

# A key that is null is a section that has nothing in it.
Section = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]
Lines = Annotated[list[str], BeforeValidator(lambda value: [] if value is None else value)]


class File(BaseModel):
    """What is asked of a file; it may hold more."""

    model_config = ConfigDict(extra="allow", strict=True)


class MetricOfFile(File):
    """One metric of a task."""

    name: str = Field(min_length=1)
    unit: str = ""
    better: Literal["lower", "higher"] = "lower"


class TaskOfFile(File):
    """The section ``task`` of a ``run.json``."""

    name: str
    item: str = ""
    metrics: list[MetricOfFile]


def with_weight_decay(training: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a training whose weight decay is a schedule."""
    schedule_from_data(training.get("weight_decay") or 0.0, "weight_decay")
    return training


class ConfigOfFile(File):
    """The section ``config`` of a ``run.json``."""

    model: Any = None
    recipe: Any = None
    data: Section = Field(default_factory=dict)
    training: Annotated[Section, AfterValidator(with_weight_decay)] = Field(default_factory=dict)


class DataOfFile(File):
    """The section ``data`` of a ``run.json``."""

    train: Section = Field(default_factory=dict)
    validation: Section = Field(default_factory=dict)
    test: Section = Field(default_factory=dict)


class RunFile(File):
    """A ``run.json``."""

    name: str = Field(min_length=1)
    seed: int = Field(ge=0)
    status: str
    task: TaskOfFile | None = None
    config: ConfigOfFile | None = None
    data: DataOfFile | None = None
    versions: Section = Field(default_factory=dict)
    machine: Section = Field(default_factory=dict)
    computed_by: Section = Field(default_factory=dict)
    parameters: Section = Field(default_factory=dict)
    flops: Section = Field(default_factory=dict)
    result: Section = Field(default_factory=dict)
    checks: dict[str, bool | None] | None = None
    alarms: Lines = Field(default_factory=list)
    notes: Lines = Field(default_factory=list)
    error: str | None = None


class ComparisonFile(File):
    """A ``comparison.json``."""

    arms: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    seeds: list[int]
    reference: str | None = None
    command: str | None = None
    created: str | None = None
    item: str | None = None
    difference: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class MetricsLine(File):
    """A line of a ``metrics.jsonl``."""

    step: int = Field(ge=0)


def read_file(path: Path, kind: type[File], *, hint: str) -> dict[str, Any]:
    """Return the content of a JSON file of ours, as it was written.

    Args:
        path: the file.
        kind: what is asked of it.
        hint: what to do when it is damaged.

    Raises:
        InputError: when it cannot be read, is of a newer format, or does not hold what is asked.
    """
    record = printable(read_object(path, hint=hint))
    version = record.get("format", FORMAT)
    if isinstance(version, int) and version > FORMAT:
        raise InputError(
            f"{path} has format {version}, newer than {FORMAT}: pip install -U transformer-dropout."
        )
    try:
        kind.model_validate(record)
    except ValidationError as error:
        raise InputError(f"{path} is damaged ({_problem(error)}): {hint}.") from None
    return record


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a ``metrics.jsonl`` in order of ``step``; none where there is no file.

    Raises:
        InputError: when a line that is not the last is no row.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        raise InputError(f"{path} cannot be read: run the arm again.") from None
    rows: dict[int, dict[str, Any]] = {}
    for at, line in enumerate(lines, start=1):
        try:
            row = printable(json.loads(line))
            # A resumed run repeats the steps it lost: the later row is the true one.
            rows[MetricsLine.model_validate(row).step] = row
        except (ValueError, RecursionError):
            if at == len(lines):  # the writer was killed in the middle of its last line
                break
            raise InputError(f"{path}:{at} is not a row of metrics: run the arm again.") from None
    return [rows[step] for step in sorted(rows)]


def printable(data: Any) -> Any:
    """Return plain data whose texts hold no character that a terminal or a page would obey or refuse.

    Line breaks and tabs stay; other control characters, marks of direction and halves of a surrogate pair are
    written as ``\\x1b``.
    """
    if isinstance(data, str):
        return "".join(map(_visible, data))
    if isinstance(data, Mapping):
        return {printable(key): printable(value) for key, value in data.items()}
    return [printable(item) for item in data] if isinstance(data, list) else data


def _visible(character: str) -> str:
    if character in "\n\t" or character.isprintable():
        return character
    if unicodedata.category(character) in ("Zs", "Cn", "Co"):
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "the file"
    return f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}"
