"""Count how many small mistakes in a module its own tests notice, here and in docs/reliability.md.

``python experiments/mutation/measure.py functional``, or ``terms/penalties``, or ``runs/loop --sample 60``.
mutmut makes the mistakes; `[tool.mutmut]` in pyproject.toml says which lines it leaves alone. Each is written
into a copy of the sources, where a process of its own runs tests until one fails: the fast tests that mirror
the module and those of ``--tests``, the quickest first, then those of the same room that import it and those
of the room's contract that are given one of its classes, as many as ``--seconds`` allow. ``--again`` tries
what nobody noticed once more, after tests were added.
"""

import argparse
import difflib
import hashlib
import importlib
import json
import os
import random
import re
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import yaml
from copied_sources import CONTRACT, Seen, copied, outcome_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGE = Path("src") / "transformer_dropout"
PAGE = ROOT / "docs" / "reliability.md"


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One small change of a module.

    Attributes:
        name: the function, and which of the mistakes in it.
        function: the function.
        was: the lines that it changes.
        becomes: what they become.
        source: the whole module with it.
    """

    name: str
    function: str
    was: str
    becomes: str
    source: str


def main() -> None:
    """Measure one module and write its record."""
    words = arguments()
    file = HERE / f"{words.module.replace('/', '.')}.json"
    record = earlier(file, words) if words.again else started(words)
    # mutmut reads its settings here.
    os.chdir(ROOT)
    count, chosen = mistakes_in(words.module, record, words)
    outcomes = Counter(record["outcomes"])
    outcomes.subtract(mistake["outcome"] for mistake in record["unnoticed"])
    left = []
    with tempfile.TemporaryDirectory() as folder:
        place = copied(Path(folder))
        tests, seconds = those_that_pass(place, words, record["tests"])
        target = place / PACKAGE / f"{words.module}.py"
        Path(cache_from_source(str(target))).unlink(missing_ok=True)
        for mistake in chosen:
            target.write_text(mistake.source, encoding="utf-8")
            outcome = outcome_of(place, tests, seconds)
            outcomes[outcome] += 1
            if outcome == "survived":
                left.append(judged(words.module, mistake, outcome))
    record |= {
        "mistakes": count,
        "tried": outcomes.total(),
        "outcomes": dict(sorted((+outcomes).items())),
        "unnoticed": left,
    }
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_rows()
    print(row(file))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("module", help="a file of the package without its ending, such as terms/penalties")
    parser.add_argument("--tests", nargs="+", default=[], help="further test files")
    parser.add_argument("--given", nargs="+", default=[], help="further classes whose contract is run")
    parser.add_argument("--seconds", type=float, default=20.0, help="of tests for each mistake, at most")
    parser.add_argument("--sample", type=int, help="try so many mistakes, drawn at random; else all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--again", action="store_true", help="try what nobody noticed, with the tests of now")
    return parser.parse_args()


def started(words: argparse.Namespace) -> dict[str, Any]:
    """Return the record of a module of which nothing has been tried yet."""
    return {
        "command": f"python experiments/mutation/measure.py {' '.join(sys.argv[1:])}",
        "module_sha256": digest(words.module),
        "tests": tests_for(words),
        "outcomes": {},
        "unnoticed": [],
    }


def earlier(file: Path, words: argparse.Namespace) -> dict[str, Any]:
    """Return the record of a module; end the program where the module is another one by now."""
    record, module = json.loads(file.read_text(encoding="utf-8")), words.module
    if record["module_sha256"] != digest(module):
        sys.exit(f"{module} has changed since; measure it anew, without --again.")
    if not record["unnoticed"]:
        sys.exit(f"Every mistake in {module} was noticed.")
    return record | {"tests": list(dict.fromkeys((*tests_for(words), *record["tests"])))}


def tests_for(words: argparse.Namespace) -> list[str]:
    """Return the test files of a module in their order, each once."""
    return list(dict.fromkeys((*mirrored(words.module), *words.tests, *others(words.module))))


def digest(module: str) -> str:
    """Return the SHA-256 of a module's source."""
    return hashlib.sha256((ROOT / PACKAGE / f"{module}.py").read_bytes()).hexdigest()


def mirrored(module: str) -> list[str]:
    """Return the test files of a module: the one of its name, and those whose names go on from it."""
    folder, _, name = f"tests/{module}".rpartition("/")
    stem = f"test_{name.lstrip('_')}"
    files = [file for pattern in (f"{stem}.py", f"{stem}_*.py") for file in (ROOT / folder).glob(pattern)]
    return sorted(str(file.relative_to(ROOT)) for file in files)


def others(module: str) -> list[str]:
    """Return the other test files of a module's room that import it, and the room's contract."""
    room, _, name = f"transformer_dropout/{module}".replace("/", ".").rpartition(".")
    imported = re.compile(rf"\b{room}\.{name}\b|from {room} import .*\b{name}\b")
    files = [
        file
        for file in sorted((ROOT / "tests" / module).parent.glob("test_*.py"))
        if file.name == CONTRACT or imported.search(file.read_text("utf-8"))
    ]
    own = mirrored(module)
    return [path for file in files if (path := str(file.relative_to(ROOT))) not in own]


def classes(module: str) -> set[str]:
    """Return the names of a module's classes."""
    return set(re.findall(r"^class (\w+)", (ROOT / PACKAGE / f"{module}.py").read_text("utf-8"), flags=re.M))


def mistakes_in(module: str, record: dict[str, Any], words: argparse.Namespace) -> tuple[int, list[Mistake]]:
    """Return how many mistakes there are in a module's functions, and those to try."""
    import libcst
    from mutmut.mutation.file_mutation import create_mutations, deep_replace

    path = PACKAGE / f"{module}.py"
    source = path.read_text(encoding="utf-8")
    tree, mutations, *_ = create_mutations(str(path), source)
    names = {node: node.name.value for node in tree.body if isinstance(node, libcst.FunctionDef)}
    for owner in (node for node in tree.body if isinstance(node, libcst.ClassDef)):
        methods = [node for node in owner.body.body if isinstance(node, libcst.FunctionDef)]
        names |= {method: f"{owner.name.value}.{method.name.value}" for method in methods}
    numbers: Counter[str] = Counter()
    found = {}
    for mutation in mutations:
        function = names.get(mutation.contained_by_top_level_function)
        if function is not None:
            numbers[function] += 1
            found[f"{function} {numbers[function]}"] = function, mutation
    if not found:
        sys.exit(f"mutmut makes no mistake in {module}.")
    wanted = [mistake["name"] for mistake in record["unnoticed"]] or sorted(found)
    if not found.keys() >= set(wanted):
        sys.exit(f"The record of {module} numbers mistakes in another way; measure it anew, without --again.")
    if words.sample is not None and words.sample < len(wanted):
        wanted = sorted(random.Random(words.seed).sample(wanted, words.sample))
    chosen = []
    for name in wanted:
        function, mutation = found[name]
        changed = deep_replace(tree, mutation.original_node, mutation.mutated_node).code
        lines = list(difflib.unified_diff(source.splitlines(), changed.splitlines(), lineterm="", n=0))[2:]
        was, becomes = ("\n".join(t[1:].strip() for t in lines if t.startswith(sign)) for sign in "-+")
        chosen.append(Mistake(name=name, function=function, was=was, becomes=becomes, source=changed))
    return len(found), chosen


def those_that_pass(place: Path, words: argparse.Namespace, files: list[str]) -> tuple[list[str], float]:
    """Return the tests to run for each mistake, in their order, and the seconds they take without one."""
    module, own = words.module, [*mirrored(words.module), *words.tests]
    if not files:
        sys.exit(f"No test file mirrors or imports {module}; name some with --tests.")
    if (
        outcome_of(place, files, 600.0, seen=Seen(classes(module) | set(words.given), own, 4 * words.seconds))
        == "timeout"
    ):
        sys.exit("The tests take half an hour without a mistake; name fewer.")
    seen = json.loads((place / "seen.json").read_text(encoding="utf-8"))
    for name in seen["modules"]:
        # Imported once here and not again for every mistake.
        with suppress(Exception):
            importlib.import_module(name)
    tests, seconds = [], 0.0
    ordered = sorted(seen["seconds"].items(), key=lambda of: (of[0].split("::")[0] not in own, of[1]))
    for name, taken in ordered:
        if not tests or seconds + taken <= words.seconds:
            tests.append(name)
            seconds += taken
    used = f"{len(tests)} of {len(seen['seconds'])} tests, {seconds:.1f} s"
    print(f"{module}: {used}; {seen['failed']} fail without a mistake", flush=True)
    if not tests:
        sys.exit("No test passes without a mistake.")
    return tests, seconds


def judged(module: str, mistake: Mistake, outcome: str) -> dict[str, str]:
    """Return a mistake that nobody noticed, with the reason where it is judged to change nothing."""
    told = {
        "name": mistake.name,
        "function": mistake.function,
        "was": mistake.was,
        "becomes": mistake.becomes,
        "outcome": outcome,
    }
    for entry in yaml.safe_load((HERE / "equivalent.yaml").read_text(encoding="utf-8")):
        if (
            re.fullmatch(entry["module"], module)
            and re.search(entry["becomes"], mistake.becomes)
            and re.search(entry.get("was", ""), mistake.was)
        ):
            return told | {"equivalent": entry["why"]}
    return told


def write_rows() -> None:
    """Put what all records say into the page's tables: a line for each room, and a row for each module."""
    files = sorted(HERE.glob("*.json"))
    page = PAGE.read_text(encoding="utf-8")
    for head, lines in (("| room |", totals(files)), ("| module |", [row(file) for file in files])):
        before, _, after = page.partition(f"\n{head}")
        names, dashes, *rest = after.splitlines(keepends=True)
        while rest and rest[0].startswith("|"):
            del rest[0]
        table = [names, dashes, *(f"{line}\n" for line in lines)]
        page = "".join([before, f"\n{head}", *table, *rest])
    PAGE.write_text(page, encoding="utf-8")


def totals(files: list[Path]) -> list[str]:
    """Return a line for each room of the package, over all its records."""
    rooms: dict[str, Counter[str]] = {}
    for file in files:
        rooms.setdefault(file.name.split(".")[0], Counter()).update(modules=1, **counts(file))
    lines = []
    for room, sums in rooms.items():
        changing, noticed = sums["tried"] - sums["equivalent"], sums["noticed"]
        lines.append(f"| {room} | {sums['modules']} | {changing} | {noticed} | {noticed / changing:.1%} |")
    return lines


def row(file: Path) -> str:
    """Return the page's row for a record."""
    of = counts(file)
    share = of["noticed"] / (of["tried"] - of["equivalent"])
    return f"| `{file.stem.replace('.', '/')}` | {' | '.join(map(str, of.values()))} | {share:.0%} |"


def counts(file: Path) -> dict[str, int]:
    """Return how many mistakes there are, and were tried, noticed, judged equivalent and left in a record."""
    record = json.loads(file.read_text(encoding="utf-8"))
    equivalent = sum("equivalent" in mistake for mistake in record["unnoticed"])
    return {
        "mistakes": record["mistakes"],
        "tried": record["tried"],
        "noticed": record["tried"] - len(record["unnoticed"]),
        "equivalent": equivalent,
        "left": len(record["unnoticed"]) - equivalent,
    }


if __name__ == "__main__":
    main()
