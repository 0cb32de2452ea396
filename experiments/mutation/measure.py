"""Count how many small mistakes in a module its own tests notice, here and in docs/reliability.md.

``python experiments/mutation/measure.py functional``, or ``terms/penalties``, or ``runs/loop --sample 60``.
mutmut makes the mistakes, in a copy of the sources, one process at a time; `[tool.mutmut]` in pyproject.toml
says how. Only the fast tests that mirror the module are run; ``--tests`` adds others. ``--again`` tries
what nobody noticed once more, after tests were added.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "reliability.md"
COPIED = ("src", "tests", "docs", "configs", "examples", "benchmarks", "experiments", "pyproject.toml")
NOTICED = ("killed", "timeout", "segfault")
STATUS = re.compile(r"^\s*(\S+): (killed|survived|no tests|timeout|segfault|suspicious|not checked)$")


def main() -> None:
    """Measure one module and write its record."""
    words = arguments()
    file = HERE / f"{words.module.replace('/', '.')}.json"
    record = earlier(file, words.module) if words.again else started(words)
    with tempfile.TemporaryDirectory() as folder:
        place = copied(Path(folder), words.module, record["tests"])
        chosen = [mistake["name"] for mistake in record["unnoticed"]] or sampled(
            place, words.sample, words.seed
        )
        mutmut(place, "run", "--max-children", "1", *chosen)
        statuses = results(place)
        tried = {name: status for name, status in statuses.items() if not chosen or name in chosen}
        if not tried or "not checked" in tried.values():
            sys.exit("mutmut stopped before it had tried all; do the tests pass without a mistake?")
        outcomes = Counter(record["outcomes"])
        outcomes.subtract(mistake["outcome"] for mistake in record["unnoticed"])
        outcomes.update(tried.values())
        left = [name for name, status in tried.items() if status not in NOTICED]
        record |= {
            "mistakes": len(statuses),
            "tried": outcomes.total(),
            "outcomes": dict(sorted((+outcomes).items())),
            "unnoticed": [judged(words.module, place, name, tried[name]) for name in left],
        }
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_rows()
    print(row(file))


def started(words: argparse.Namespace) -> dict[str, Any]:
    """Return the record of a module of which nothing has been tried yet."""
    return {
        "command": f"python experiments/mutation/measure.py {' '.join(sys.argv[1:])}",
        "module_sha256": digest(words.module),
        "tests": [*mirrored(words.module), *words.tests],
        "outcomes": {},
        "unnoticed": [],
    }


def earlier(file: Path, module: str) -> dict[str, Any]:
    """Return the record of a module; end the program where the module is another one by now."""
    record = json.loads(file.read_text(encoding="utf-8"))
    if record["module_sha256"] != digest(module):
        sys.exit(f"{module} has changed since; measure it anew, without --again.")
    if not record["unnoticed"]:
        sys.exit(f"Every mistake in {module} was noticed.")
    return record


def digest(module: str) -> str:
    """Return the SHA-256 of a module's source."""
    return hashlib.sha256((ROOT / "src" / "transformer_dropout" / f"{module}.py").read_bytes()).hexdigest()


def write_rows() -> None:
    """Put the rows of all records into the page's table, which ends the page."""
    head = PAGE.read_text(encoding="utf-8").rpartition("|---|\n")
    rows = [row(file) for file in sorted(HERE.glob("*.json"))]
    PAGE.write_text("".join([*head[:2], *(f"{each}\n" for each in rows)]), encoding="utf-8")


def row(file: Path) -> str:
    """Return the page's row for a record."""
    record = json.loads(file.read_text(encoding="utf-8"))
    noticed = sum(record["outcomes"].get(outcome, 0) for outcome in NOTICED)
    equivalent = sum("equivalent" in mistake for mistake in record["unnoticed"])
    share = noticed / (record["tried"] - equivalent)
    left = len(record["unnoticed"]) - equivalent
    counts = (record["mistakes"], record["tried"], noticed, equivalent, left)
    return f"| `{file.stem.replace('.', '/')}` | {' | '.join(map(str, counts))} | {share:.0%} |"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("module", help="a file of the package without its ending, such as terms/penalties")
    parser.add_argument("--tests", nargs="+", default=[], help="further test files")
    parser.add_argument("--sample", type=int, help="try so many mistakes, drawn at random; else all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--again", action="store_true", help="try what nobody noticed, with the tests of now")
    return parser.parse_args()


def mirrored(module: str) -> list[str]:
    """Return the test files of a module: the one of its name, and those whose names go on from it."""
    folder, _, name = f"tests/{module}".rpartition("/")
    stem = f"test_{name.lstrip('_')}"
    files = [file for pattern in (f"{stem}.py", f"{stem}_*.py") for file in (ROOT / folder).glob(pattern)]
    return sorted(str(file.relative_to(ROOT)) for file in files)


def copied(folder: Path, module: str, tests: list[str]) -> Path:
    """Copy what the tests need into a folder, with a configuration for one module."""
    for name in COPIED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    lines = [
        f"only_mutate = {json.dumps([f'src/transformer_dropout/{module}.py'])}",
        f"pytest_add_cli_args_test_selection = {json.dumps(tests)}",
    ]
    with (folder / "pyproject.toml").open("a", encoding="utf-8") as file:
        # The table of mutmut is the last one in the file.
        file.write("\n".join(lines) + "\n")
    return folder


def mutmut(place: Path, *arguments: str) -> list[str]:
    """Call mutmut in a folder, on one thread and nothing but the folder to import from; return its lines."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [Path(sys.executable).with_name("mutmut"), *arguments]
    return subprocess.run(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()


def sampled(place: Path, count: int | None, seed: int) -> list[str]:
    """Return the names of the mistakes to try; none stands for all."""
    if count is None:
        return []
    # Making them takes a run; a name that matches nothing makes all and tries none.
    mutmut(place, "run", "--max-children", "1", "no such mistake")
    names = sorted(results(place))
    return names if len(names) <= count else sorted(random.Random(seed).sample(names, count))


def results(place: Path) -> dict[str, str]:
    """Return what became of each mistake."""
    lines = mutmut(place, "results", "--all", "true")
    return {match[1]: match[2] for line in lines if (match := STATUS.match(line))}


def judged(module: str, place: Path, name: str, status: str) -> dict[str, str]:
    """Return a mistake that nobody noticed, with the reason where it is judged to change nothing."""
    shown = mutmut(place, "show", name)
    was, becomes = (
        "\n".join(line[1:].strip() for line in shown if re.match(rf"{sign}(?!{sign})", line))
        for sign in ("-", r"\+")
    )
    function = re.sub(r"^.*?x[_ǁ]|__mutmut_\d+$", "", name.rpartition(".")[2]).replace("ǁ", ".")
    mistake = {"name": name, "function": function, "was": was, "becomes": becomes, "outcome": status}
    for entry in yaml.safe_load((HERE / "equivalent.yaml").read_text(encoding="utf-8")):
        if (
            re.fullmatch(entry["module"], module)
            and re.search(entry["becomes"], becomes)
            and re.search(entry.get("was", ""), was)
        ):
            return mistake | {"equivalent": entry["why"]}
    return mistake


if __name__ == "__main__":
    main()
