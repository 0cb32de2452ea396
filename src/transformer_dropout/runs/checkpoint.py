"""Checkpoints that survive a kill at any moment and say so when they are damaged.

A checkpoint is a folder ``step-00000250`` of safetensors files and ``state.json``, which holds their
digests and one of itself. It is written under another name and moved into place, so a folder with that name
is complete. Nothing in it is code.
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from .files import flush_to_disk, write_json, write_tensors

NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is needed to go on as if nothing had happened.

    Attributes:
        step: optimizer steps done.
        run: fingerprint of the run config it belongs to.
        tensors: named groups of named tensors: model, optimizer, random states.
        state: everything else, as JSON.
    """

    step: int
    run: str
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class DamagedCheckpoint(ValueError):
    """A checkpoint that is incomplete, altered, or of another run."""


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(content: dict[str, Any]) -> str:
    """Return the SHA-256 of what a ``state.json`` says, whatever its spaces."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, name: str | None = None, keep: int = 2) -> Path:
    """Write a checkpoint, then remove all but the newest few.

    Args:
        folder: where the checkpoints of one run lie.
        checkpoint: what to write.
        name: a name of its own, which is kept until the same name is written again.
        keep: how many of the numbered ones are left.
    """
    place = folder / (name or f"step-{checkpoint.step:08d}")
    temporary = folder / f".writing-{place.name}"
    for left_by_a_kill in folder.glob(".writing-*"):
        shutil.rmtree(left_by_a_kill)
    temporary.mkdir(parents=True)
    digests = {}
    for group, tensors in checkpoint.tensors.items():
        path = temporary / f"{group}.safetensors"
        write_tensors(path, tensors)
        digests[group] = digest(path)
    content = {"step": checkpoint.step, "run": checkpoint.run, "digests": digests, "state": checkpoint.state}
    write_json(temporary / "state.json", content | {"sha256": digest_of(content)})
    flush_to_disk(temporary)
    if place.exists():
        shutil.rmtree(place)
    temporary.rename(place)
    if name is None:
        for old in checkpoint_folders(folder)[keep:]:
            shutil.rmtree(old)
    return place


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the numbered checkpoints, newest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if NAME.fullmatch(p.name)), reverse=True)


def load_checkpoint(place: Path, run: str) -> Checkpoint:
    """Read one checkpoint.

    Args:
        place: its folder.
        run: fingerprint of the run config that it must belong to.

    Raises:
        DamagedCheckpoint: for a missing or altered file, or a checkpoint of another run.
    """
    try:
        content = json.loads((place / "state.json").read_text(encoding="utf-8"))
        if content.pop("sha256") != digest_of(content):
            raise DamagedCheckpoint("state.json is truncated or altered")
        if content["run"] != run:
            raise DamagedCheckpoint("it belongs to another run config")
        tensors = {}
        for group, expected in content["digests"].items():
            path = place / f"{group}.safetensors"
            if digest(path) != expected:
                raise DamagedCheckpoint(f"{path.name} is truncated or altered")
            tensors[group] = load_file(path)
        return Checkpoint(step=content["step"], run=run, tensors=tensors, state=content["state"])
    except OSError as error:
        raise DamagedCheckpoint(f"{Path(error.filename or place).name} cannot be read") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DamagedCheckpoint):
            raise
        raise DamagedCheckpoint("state.json is truncated or altered") from None


def latest_checkpoint(folder: Path, run: str) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest sound checkpoint of a run, and one sentence for each that was refused."""
    refused = []
    for place in checkpoint_folders(folder):
        try:
            return load_checkpoint(place, run), refused
        except DamagedCheckpoint as error:
            refused.append(f"Refused checkpoint {place.name}: {error}.")
    return None, refused
