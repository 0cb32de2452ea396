"""What every bad input is to end in, and a folder of good ones to spoil.

``pytest tests/bad_inputs --bad-inputs 1000`` draws so many new cases of each kind instead of the few of CI.
"""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.bad_inputs.cases import FOLDER
from tests.tasks.causal_lm.conftest import gpt2_dir  # noqa: F401
from tests.tasks.sentences.conftest import class_paths, model_dir  # noqa: F401
from transformer_dropout import cli
from transformer_dropout.compare.comparison import comparison_content
from transformer_dropout.runs.files import write_json
from transformer_dropout.runs.run import run
from transformer_dropout.runs.run_config import config_from_data

SECONDS, BYTES = 5, 2 << 30
# What a hang is given before it is ended.
LONGEST, HUNG = 60, -1


OTHER_TASKS = (
    ("images", "images", {"hidden": [4]}),
    ("images_vit", "images", {"width": 8, "heads": 2, "blocks": 1}),
    ("regression", "table.csv", {"hidden": [4]}),
)
PRETRAINED_TASKS = (
    ("sentences", {"source": "bert"}, {"classes": {"neg": "neg.txt", "pos": "pos.txt"}}),
    ("causal_lm", {"source": "gpt2", "context": 8}, {"source": "text.txt", "train_examples": 8}),
)


class Hung(BaseException):
    """A command did not end."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended, what it printed and took, and whether it left anything."""

    code: int
    out: str
    err: str
    seconds: float
    bytes: int
    left: set

    def problem(self) -> str | None:
        """Return what is wrong with it as a refusal; None for one that is as it should be."""
        if self.code == HUNG:
            return f"no end after {LONGEST} s"
        if self.code != 2:
            return f"exit code {self.code}, not 2: {self.err or self.out[-300:]}"
        if len(self.err.splitlines()) != 1 or not self.err.startswith("error: "):
            return f"not one sentence on standard error: {self.err!r}"
        if "Traceback" in self.err or "Unforeseen" in self.err or self.err.rstrip()[-1:] in (":", "(", ","):
            return f"not a sentence: {self.err}"
        if "memory of this machine" in self.err:
            return "it ran out of memory instead of refusing"
        if not self.err[:-1].isprintable():
            return f"characters that a terminal obeys: {self.err!r}"
        if self.left:
            return f"changed on disk: {sorted(map(str, self.left))[:5]} after {self.err}"
        if self.seconds > SECONDS or self.bytes > BYTES:
            return f"{self.seconds:.1f} s, {self.bytes / 2**30:.1f} GB before {self.err}"
        return None


@pytest.fixture(scope="session")
def good(tmp_path_factory, tiny, learned, cache, gpt2_dir, model_dir, class_paths):  # noqa: F811
    """A folder of everything that can be spoilt, all of it good."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    folder = tmp_path_factory.mktemp("good")
    config = tiny(recipe=learned, steps=4, eval_every=2)
    data = config.to_data()
    data["data"] |= {"source": "text.txt", "tokenizer": "chars"}
    shutil.copy(config.data.source, folder / "text.txt")
    with contextlib.chdir(folder):
        (folder / "language.yaml").write_text(config_from_data(dict(data), {}).to_yaml())
        run(config_from_data(dict(data), {}), folder / "run")
        for name in ("one", "other"):
            arm = config_from_data({**data, "name": name}, {})
            place = folder / "comparison" / "runs" / name / "seed-0"
            shutil.copytree(folder / "run", place)
            record = json.loads((place / "run.json").read_text()) | {"name": name, "config": arm.to_data()}
            write_json(place / "run.json", record)
            for unread in ("model", "checkpoints"):
                shutil.rmtree(place / unread)
        arms = [config_from_data({**data, "name": name}, {}) for name in ("one", "other")]
        content = comparison_content(folder / "new", arms, [0], {"command": "dropout compare"})
        write_json(folder / "comparison" / "comparison.json", content)
        table = "a,b,c\n" + "".join(f"{n},{n * n % 17},{n % 5}\n" for n in range(60))
        (folder / "table.csv").write_text(table)
        images(folder / "images")
        training = data["training"] | {"steps": 2, "eval_every": 2, "batch": 4}
        for task, source, model in OTHER_TASKS:
            own = {
                "name": task,
                "task": task,
                "data": {"source": source},
                "model": model,
                "training": training,
            }
            (folder / f"{task}.yaml").write_text(config_from_data(own, {}).to_yaml())
        shutil.copytree(gpt2_dir, folder / "gpt2")
        shutil.copytree(model_dir, folder / "bert")
        for name, path in zip(("neg", "pos"), class_paths.values(), strict=True):
            shutil.copy(path, folder / f"{name}.txt")
        for task, model, source in PRETRAINED_TASKS:
            own = {"name": task, "task": task, "data": source, "model": model, "training": training}
            (folder / f"{task}.yaml").write_text(config_from_data(own, {}).to_yaml())
    (folder / "finetune.py").write_text("def train(trial):\n    trial.report(step=1, val_loss=1.0)\n")
    rule = "{select: mlp_output, layer: Dropout, p: 0.1}"
    (folder / "arms.yaml").write_text(
        f"- {{name: a, recipe: [{rule}], settings: {{lr: 0.1}}}}\n- {{name: b}}\n"
    )
    (folder / "space.yaml").write_text("settings:\n  training.lr: {low: 1e-4, high: 1e-2, log: true}\n")
    (folder / "recipe.yaml").write_text(f"- {rule}\n")
    (folder / "circle").symlink_to("circle")
    for file in (Path(__file__).parents[2] / "configs" / "published").glob("*.yaml"):
        shutil.copy(file, folder / f"published_{file.name}")
    return folder


def images(folder):
    """Write four IDX files of 6 x 6 images."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for use, count in (("train", 60), ("t10k", 20)):
        pixels = random.integers(0, 255, (count, 6, 6)).astype(np.uint8)
        header = struct.pack(">4I", 0x0803, *pixels.shape)
        (folder / f"{use}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = random.integers(0, 3, count).astype(np.uint8)
        (folder / f"{use}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2I", 0x0801, count) + labels.tobytes()
        )


@pytest.fixture
def ended(good, tmp_path, monkeypatch):
    """Run a case in this process, in a copy of the good folder, and return how it ended."""
    monkeypatch.setenv("COLUMNS", "200")
    number = iter(range(10**9))

    def ended(case):
        folder = tmp_path / f"{next(number)}"
        shutil.copytree(good, folder, symlinks=True)
        for name, content in case.files.items():
            spoil(folder / name, content)
        before, out, err = everything_in(folder), io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "argv", ["dropout", *case.words])
        forget_peak()
        start = resource.getrusage(resource.RUSAGE_SELF)
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = code_of_main()
        end = resource.getrusage(resource.RUSAGE_SELF)
        found = Ended(
            code=code,
            out=out.getvalue(),
            err=err.getvalue(),
            # Not by the clock: other work on the machine is no fault of the command's.
            seconds=end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime,
            bytes=peak_bytes(),
            left={name for name, _ in everything_in(folder) ^ before},
        )
        shutil.rmtree(folder)
        return found

    return ended


def spoil(path, content):
    """Put a content in the place of a file."""
    if path.exists():
        path.unlink()
    if content == FOLDER:
        path.mkdir()
    elif content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def everything_in(folder):
    """Return every file and folder below one, with what would tell a change."""
    return {
        (
            path.relative_to(folder),
            (path.lstat().st_size, path.lstat().st_mtime_ns) if path.is_file() else None,
        )
        for path in folder.rglob("*")
    }


def code_of_main():
    """Run the command line of `sys.argv` and return its exit code; end one that hangs."""

    def end(number, frame):
        raise Hung

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LONGEST)
    try:
        cli.main()
    except SystemExit as exit:
        return exit.code or 0
    except Hung:
        return HUNG
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def forget_peak():
    """Let the system count this process's peak of memory anew, where it can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes():
    """Return this process's peak of memory; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    return 0


@pytest.fixture
def all_refused(ended, request):
    """Draw cases and see each of them refused as it should be; tell all that are not, one of each sort."""
    more = request.config.getoption("--bad-inputs")

    def all_refused(cases, count, problem_of=None):
        problems, seen = {}, set()

        @settings(
            max_examples=more or count,
            derandomize=more is None,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(cases)
        def each(case):
            problem = ended(case).problem() if problem_of is None else problem_of(case)
            seen.add(repr(case))
            if problem is not None:
                problems.setdefault(problem[:60], f"{case}\n    {problem}")

        each()
        assert not problems, f"{len(problems)} sorts:\n" + "\n".join(problems.values())
        assert more or len(seen) >= 0.8 * count, f"only {len(seen)} different cases"

    return all_refused
