"""A copy of the sources, in which processes run tests for `measure`."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COPIED = ("src", "tests", "docs", "configs", "examples", "benchmarks", "experiments", "pyproject.toml")
CONTRACT = "test_contract.py"
# A compiler starts processes of its own.
NOT_AHEAD = re.compile(r"torch\._(inductor|dynamo)")
MEMORY = 12 * 2**30


def copied(folder: Path) -> Path:
    """Copy what the tests need into a folder."""
    for name in COPIED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / name)
    return folder


class Seen:
    """What a run of tests without a mistake shows: the seconds of those that pass, and what was imported.

    Args:
        kinds: names of classes; of a contract those tests alone are run that are given one.
        own: the files that are run to their end.
        enough: of the others no further test is begun after so many seconds.
    """

    def __init__(self, kinds: set[str], own: list[str], enough: float) -> None:
        self.kinds, self.own, self.enough = kinds, own, enough
        self.seconds: Counter[str] = Counter()
        self.passed: set[str] = set()
        self.failed: set[str] = set()

    def pytest_sessionstart(self, session: Any) -> None:
        self.session = session

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if item.path.name != CONTRACT or self.is_given(item)]

    def is_given(self, item: Any) -> bool:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        return any(value in self.kinds for value in parameters if isinstance(value, str))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.nodeid.split("::")[0] not in self.own and self.seconds.total() > self.enough:
            self.session.shouldstop = "enough seen"
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)
        if report.failed:
            self.failed.add(report.nodeid)

    def write(self, file: Path) -> None:
        seconds = {name: self.seconds[name] for name in sorted(self.passed - self.failed)}
        found = {n: getattr(m, "__file__", None) or "" for n, m in list(sys.modules.items())}
        modules = sorted(n for n, path in found.items() if "site-packages" in path and not NOT_AHEAD.match(n))
        content = {"seconds": seconds, "failed": len(self.failed), "modules": modules}
        file.write_text(json.dumps(content), encoding="utf-8")


def outcome_of(place: Path, tests: list[str], seconds: float, *, seen: Seen | None = None) -> str:
    """Run tests in a process of its own in a copy of the sources; return what became of the mistake there."""
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(place, tests, seen))
    process.start()
    process.join(3 * seconds + 20)
    late = process.exitcode is None
    assert process.pid is not None
    with suppress(ProcessLookupError):
        # With whatever the tests have started.
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    if late:
        return "timeout"
    return "survived" if process.exitcode == 0 else "killed"


def run_tests(place: Path, tests: list[str], seen: Seen | None) -> None:
    """Run tests in a copy, until one fails or for ``seen`` all of them; end with pytest's exit code."""
    import pytest

    os.setpgrp()
    os.chdir(place)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    # Plugins, and rewritten assertions, take longer to load than most tests to run.
    quick = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    os.environ |= {"PYTHONPATH": str(place / "src"), **quick}
    sys.path[:0] = [str(place / "src"), str(place)]
    if seen is None:
        # Two mistakes may be of one size and one second: what is compiled must not outlive its source.
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    options = ["--assert=plain", "-p", "no:cacheprovider", "-m", "not slow"]
    options += [] if seen else ["-x"]
    code = pytest.main([*options, *tests], plugins=[] if seen is None else [seen])
    if seen is not None:
        seen.write(place / "seen.json")
    os._exit(int(code))
