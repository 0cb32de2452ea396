#!/usr/bin/env python3
"""Set up and run: ``python3 start.py compare`` or ``python3 start.py test``.

Makes ``.venv`` from ``constraints.txt`` when there is none, or when either file has changed, then runs the
command ``dropout`` with the words given, the timings, or the tests. Needs Python 3.11 or newer and nothing
else.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
BIN = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")

USAGE = """\
python3 start.py compare     train six regularizers x three seeds on real text, and report which won
python3 start.py test        lint, check types, run the tests
python3 start.py bench       time what the package makes fast against what people use
python3 start.py COMMAND     any other command of `dropout`, e.g. train, generate, report
"""


def main(words: list[str]) -> int:
    """Install what the command needs and run it; return its exit code."""
    if sys.version_info < (3, 11):
        print(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; run this with python3.11.")
        return 2
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if words else 2
    code = install("test" if words[0] in ("test", "bench") else "compare")
    if code:
        return code
    if words[0] == "test":
        return test(words[1:])
    if words[0] == "bench":
        return subprocess.call([str(PYTHON), "-m", "benchmarks", *words[1:]], cwd=ROOT)
    return subprocess.call([str(PYTHON), "-m", "transformer_dropout", *words])


def install(extra: str) -> int:
    """Make or bring up to date the environment with one extra of the project; return an exit code."""
    stamp = ENVIRONMENT / f".installed-{extra}"
    wanted = hashlib.sha256(
        (ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()
    ).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return 0
    print(f"Installing into {ENVIRONMENT} (once, a few minutes) ...", flush=True)
    if not PYTHON.exists():
        try:
            venv.create(ENVIRONMENT, with_pip=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"Cannot make {ENVIRONMENT} ({error}); on Debian and Ubuntu run: apt install python3-venv")
            return 2
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    code = subprocess.call([*pip, "-c", "constraints.txt", "-e", f".[{extra}]"], cwd=ROOT)
    if code == 0:
        stamp.write_text(wanted)
    return code


def test(words: list[str]) -> int:
    """Run linter, type checker and tests; return the first exit code that is not 0."""
    chosen = words or ["-n", str(os.cpu_count() or 1)]
    for command in (
        [str(BIN / "ruff"), "check", "."],
        [str(BIN / "ruff"), "format", "--check", "."],
        [str(BIN / "pyrefly"), "check", "--python-interpreter-path", str(PYTHON)],
        [str(PYTHON), "-m", "pytest", *chosen],
    ):
        code = subprocess.call(command, cwd=ROOT)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
