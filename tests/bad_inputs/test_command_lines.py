"""Command lines that no one could have meant: every option of every command, and the words around them."""

import subprocess
import sys

import pytest
import typer
from hypothesis import strategies as st

from tests.bad_inputs.cases import Case, words_like
from transformer_dropout import cli

COMMANDS = typer.main.get_command(cli.app).commands
# A command line of each command that is as it should be.
GOOD = {
    "train": ("train", "language.yaml", "--out", "out"),
    "compare": ("compare", "language.yaml", "--out", "out", "--seeds", "1"),
    "tune": ("tune", "language.yaml", "--out", "out", "--trials", "2"),
    "report": ("report", "comparison"),
    "audit": ("audit", "run"),
    "sites": ("sites", "run"),
    "generate": ("generate", "run", "--tokens", "3"),
    "show": ("show", "run", "--text", "The owl", "--out", "page.html"),
}
NUMBERS = (
    *("--seed", "--steps", "--threads", "--seeds", "--jobs", "--gpus", "--lora", "--trials", "--folds"),
    *("--tokens", "--temperature", "--top-k", "--top-p"),
)
NO_NUMBERS = ("", "x", "1,5", "0x10", "ten", "1 2", "٣٤x", "--out", "1e")
TEXT = "a\udce9b"
# By command and option, words that are of the right kind and mean nothing.
OUTSIDE = {
    ("train", "--out"): (
        "text.txt",
        "text.txt/below",
        "n" * 300,
        "~nouser/x",
        "/dev/null/x",
        "circle/x",
        "/proc/x/y",
    ),
    ("train", "--seed"): ("-1", "4294967296", "1" * 30),
    ("train", "--steps"): ("0", "-1", "9" * 30),
    ("train", "--threads"): ("0", "-1", "1000000"),
    ("train", "--data"): (
        "nowhere.txt",
        "",
        "~nouser/x.txt",
        "dataset:",
        "circle",
        "n" * 5000,
        "run/model/model.safetensors",
    ),
    ("train", "--set"): (
        "x",
        "=",
        "=1",
        "training.stepss=1",
        "training=1",
        "a.b.c=1",
        "recipe.9.p=0.1",
        "recipe=x",
    ),
    ("compare", "--out"): ("text.txt", "text.txt/x", "n" * 300, "~nouser", "circle", "run", "/dev/null/x"),
    ("compare", "--seeds"): ("0", "-1", "1000000000"),
    ("compare", "--jobs"): ("0", "-1", "1000000000"),
    ("compare", "--gpus"): ("-1", "100000"),
    ("compare", "--on"): (
        "",
        "x",
        "local:",
        "local:0",
        "local:x",
        "local:-1",
        "dask:",
        "slurm:",
        "local:2:3",
        ":",
    ),
    ("compare", "--reference"): ("zzz", ""),
    ("compare", "--task"): ("language", "zzz", "", "nowhere.py", "os"),
    ("compare", "--model"): ("nowhere", ""),
    ("compare", "--lora"): ("0", "-1", "8"),
    ("compare", "--run"): ("", "true", "true {seed", "true {seed} {zzz}", "'", "true {0} {seed}", "{seed!z}"),
    ("compare", "--arms"): ("nowhere.yaml", "run", "text.txt", "arms.yaml"),
    ("compare", "--metric"): ("", ":higher", "loss:more", "x", "val_loss:"),
    ("tune", "--out"): ("text.txt", "text.txt/x", "n" * 300, "~nouser", "circle", "run"),
    ("tune", "--trials"): ("0", "1", "-1", "1000000000"),
    ("tune", "--folds"): ("0", "-1", "1000000000"),
    ("tune", "--jobs"): ("0", "-1"),
    ("tune", "--method"): ("zzz", ""),
    ("tune", "--space"): ("nowhere.yaml", "run", "text.txt", ""),
    ("tune", "--on"): ("x", "local:0"),
    ("audit", "--html"): ("run", "nowhere/x.html", "text.txt/x.html", "n" * 300),
    ("audit", "--ignore"): ("zzz", ""),
    ("audit", "--attention"): ("zzz", ""),
    ("sites", "--recipe"): ("zzz", "nowhere.yaml", "text.txt", "comparison", ""),
    ("generate", "--tokens"): ("-1", "1000000000000"),
    ("generate", "--temperature"): ("-1", "nan", "inf", "-inf", "1e-300", "1e300"),
    ("generate", "--top-k"): ("0", "-1"),
    ("generate", "--top-p"): ("0", "-1", "1.5", "nan", "inf"),
    ("generate", "--seed"): ("-1", "1" * 30),
    ("show", "--text"): ("", TEXT, "\x1b[2J", "\x00"),
    ("show", "--out"): ("run", "nowhere/x.html", "text.txt/x.html", "n" * 300, "circle", "~nouser/x.html"),
    ("generate", "--prompt"): ("", TEXT, "\x1b[2J", "\x00", "\x9b"),
}
# By command, other words in the place of the first argument.
TARGETS = {
    "train": (
        "nowhere.yaml",
        "run",
        "text.txt",
        "run/model/model.safetensors",
        "circle",
        "n" * 300,
        "",
        "~nouser/x",
        TEXT,
    ),
    "compare": (
        "nowhere.yaml",
        "run",
        "finetune.py:train",
        "finetune.py:nothing",
        "nowhere.py:train",
        "",
        TEXT,
    ),
    "tune": ("nowhere.yaml", "run", "finetune.py:train", "text.txt", "", TEXT),
    "report": ("nowhere", "text.txt", "images", "circle", "n" * 300, "", "~nouser", TEXT),
    "audit": (
        "nowhere",
        "zzz",
        "text.txt",
        "images",
        "os:getcwd",
        "os:nothing",
        "nowhere:x",
        ":",
        "",
        "circle",
        TEXT,
    ),
    "sites": ("nowhere", "zzz", "text.txt", "images", "os:getcwd", "no.such:x", "", "x:", "\x1b[31m", TEXT),
    "show": ("nowhere", "text.txt", "images", "comparison", "circle", "n" * 300, "", TEXT),
    "generate": ("nowhere", "text.txt", "images", "comparison", "circle", "n" * 300, "", TEXT),
}


def options(command):
    return [option for option in COMMANDS[command].params if option.param_type_name == "option"]


def bad_lines(command):
    """Draw command lines of a command with one thing in them that cannot be."""
    good = GOOD[command]
    known = {name.lstrip("-") for option in COMMANDS[command].params for name in option.opts}
    takes_value = [option.opts[0] for option in options(command) if not option.is_flag]
    outside = [(name, word) for (of, name), words in OUTSIDE.items() if of == command for word in words]
    ways = [
        words_like(known, others=False).map(lambda word: (*good, f"--{word}")),
        words_like(known, others=False).map(lambda word: (*good, f"--{word}=1")),
        st.sampled_from([(*good, TEXT), (*good, "\x1b[2J"), (*good, "--help=1"), (*good, "-z")]),
        st.sampled_from(TARGETS[command]).map(lambda word: (command, word, *good[2:])),
    ]
    if command not in ("compare", "tune"):
        # Those two have arms of their own, and take several configs.
        ways.append(st.sampled_from([(command,), (*good, "more")]))
    if takes_value:
        ways.append(st.sampled_from(takes_value).map(lambda name: (*good, name)))
    numbers = [name for name in takes_value if name in NUMBERS]
    if numbers:
        ways.append(
            st.tuples(st.sampled_from(numbers), st.sampled_from(NO_NUMBERS)).map(lambda p: (*good, *p))
        )
    if outside:
        pairs = st.sampled_from(outside)
        ways += [
            pairs.map(lambda pair: (*good, *pair)),
            pairs.map(lambda pair: (*good, f"{pair[0]}={pair[1]}")),
        ]
    return st.one_of(ways)


@pytest.mark.parametrize("command", sorted(GOOD))
def test_command_lines(all_refused, command):
    all_refused(bad_lines(command).map(lambda words: Case(words=words)), 20)


def test_every_command_has_its_cases():
    assert GOOD.keys() == COMMANDS.keys() == TARGETS.keys()
    known = {(name, option.opts[0]) for name in COMMANDS for option in options(name)}
    assert OUTSIDE.keys() <= known


@pytest.mark.parametrize("words", [("trian",), ("train", TEXT), ("--zzz",), ("report", "\x1b]0;x\x07")])
def test_a_word_in_the_place_of_a_command(ended, words):
    assert ended(Case(words=words)).problem() is None


def test_the_check_can_fail(ended):
    for words in (GOOD["report"], GOOD["generate"], ("--help",)):
        assert ended(Case(words=words)).problem().startswith("exit code 0")
    found = ended(Case(words=("train", "nowhere.yaml"), files={"nowhere.yaml": None}))
    assert found.problem() is None
    for change in (
        {"code": 1},
        {"err": ""},
        {"err": "error: x.\nerror: y."},
        {"err": "Usage: x"},
        {"left": {"x"}},
    ):
        assert type(found)(**{**vars(found), **change}).problem() is not None
    for change in ({"seconds": 6.0}, {"bytes": 3 << 30}, {"err": "error: \x1b[2Jx."}):
        assert type(found)(**{**vars(found), **change}).problem() is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("train", "nowhere.yaml"),
        ("report", "nowhere"),
        ("generate", "run", "--temperature", "nan"),
        ("compare", "language.yaml", "--set", "training.lr=fast"),
        ("train", "language.yaml", "--out", "out", "--data", "nowhere.txt"),
    ],
)
def test_a_real_process(good, environment, words):
    command = [sys.executable, "-m", "transformer_dropout", *words]
    ended = subprocess.run(command, cwd=good, env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1)
    assert ended.stderr.startswith("error: ")
    assert not (good / "out").exists()
