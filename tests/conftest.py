"""Tiny runs for all tests: a text of a few kilobytes, a decoder of a few thousand weights, one thread."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from transformer_dropout.runs.run_config import RunConfig
from transformer_dropout.runs.training_config import TrainingConfig
from transformer_dropout.tasks.language.data import DataConfig
from transformer_dropout.tasks.language.decoder import DecoderConfig

LEARNED = {
    "select": "mlp_output",
    "layer": "LearnedDropout",
    "heads": 2,
    "shift": 1.0,
    "penalty": "squared",
    "weight": 0.1,
}
DROPOUT = {"select": "attention_output", "layer": "Dropout", "p": 0.1}

MODEL = DecoderConfig(width=16, heads=2, blocks=1, context=16)
TRAINING = TrainingConfig(steps=20, batch=4, eval_every=10, warmup_steps=2, lr=1e-2, probe_windows=8)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bad-inputs",
        type=int,
        metavar="N",
        help="draw N new cases of each kind of bad input, instead of the few of tests/bad_inputs",
    )
    parser.addoption(
        "--kills",
        type=int,
        metavar="N",
        default=20,
        help="kill runs N times at random moments, in tests/runs/test_crash_safety.py",
    )


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two busy threads on a shared machine are slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tiny runs of one test process keep their prepared data."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def environment(cache: Path) -> dict[str, str]:
    """The environment of child processes."""
    return os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the user's cache folder alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    yield


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 8 kB of plain English-like text."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    things = ("cat", "dog", "owl")
    lines = (f"The {things[n % 3]} of house {n} counts {n * n % 97} and returns.\n" for n in range(200))
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(text_file: Path) -> Callable[..., RunConfig]:
    """Make a run config of a few hundred milliseconds; keywords change ``training``."""

    def make(name: str = "tiny", *, recipe: Any = (), seed: int = 0, **training: Any) -> RunConfig:
        return RunConfig(
            name=name,
            seed=seed,
            model=MODEL,
            recipe=[dict(rule) for rule in recipe],
            data=DataConfig(source=str(text_file)),
            training=replace(TRAINING, **training),
        )

    return make


@pytest.fixture(scope="session")
def learned() -> list[dict[str, Any]]:
    """A recipe whose masks are random in training: a learned one and a plain one."""
    return [LEARNED, DROPOUT]


HEADLESS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., str]:
    """Open a page in headless Chromium and return what it prints."""
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have chromium on PATH to look at pages")
        pytest.skip("chromium is not on PATH")

    def browse(page: Path, *options: str, size: str = "500,1600") -> str:
        command = [chromium, *HEADLESS, f"--window-size={size}", f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run(
            [*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout

    return browse


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a file system with given options at a folder."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"mounting a file system is not permitted here: {result.stderr.strip()}")
        return place

    yield mount
    # Lazily: files on it may still be mapped into memory.
    while subprocess.run(["umount", "--lazy", str(place)], capture_output=True).returncode == 0:
        pass
