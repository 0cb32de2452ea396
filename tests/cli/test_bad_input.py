"""Whatever a user gets wrong: exit code 2, one sentence on standard error, and nothing overwritten."""

import json

import pytest

from transformer_dropout.runs.run import run


def assert_refused(result, part):
    """Check for one sentence that holds a part, and nothing else."""
    assert result.code == 2
    assert "Traceback" not in result.err + result.out
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("error: ")
    assert part in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("training:\n  stepps: 5\n", "bad.yaml:2:3: unknown key 'training.stepps'. Did you mean 'steps'?"),
        ("training:\n  lr: fast\n", "bad.yaml:2:3: training.lr is 'fast'"),
        ("recipe: [{select: mlp_output, layer: Dropout, p: 1.5}]", "p is 1.5"),
        ("recipe: [{select: mlp_output, layer: Dropout}]", "needs p"),
        ("model: {width: 10, heads: 4}", "not divisible by model.heads 4"),
        ("recipe: [{select: mlp_output, layer: LearnedDropout, heads: 5}]", "split among 5 heads"),
        ("recipe: [{select: mlp_output, layer: LearnedDropout, heads: 4, shift: 4}]", "between 0 and pi"),
        ("recipe: [{select: mlp_outptu, layer: Dropout, p: 0.1}]", "matches no site"),
        ("format: 99\nnew_key: 1\n", "reads up to format 1"),
        ("data: {tokenizer: byte}", "bytes"),
        ("a: [1", "this is not YAML"),
    ],
)
def test_a_run_config_that_does_not_fit(here, tmp_path, snapshot, text, part):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    before = snapshot()
    assert_refused(here("train", path, "--out", "out"), part)
    assert_refused(here("compare", path, "--out", "compared"), part)
    assert snapshot() == before


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--set", "training.stepps=5"], "Did you mean 'steps'?"),
        (["--set", "training.lr"], "--set 'training.lr' has no value; write --set KEY=VALUE"),
        (["--set", "=3"], "has no value"),
        (["--set", "training.lr=fast"], "training.lr is 'fast'"),
        (["--set", "recipe.0.p=0.1"], "recipe"),
        (["--data", "missing.txt"], "missing.txt"),
        (["--data", "stdlib-doc"], "Did you mean 'stdlib-docs'?"),
        (["--data", "empty.txt"], "empty.txt"),
        (["--data", "latin1.txt"], "is not UTF-8 text"),
        (["--data", "short.txt"], "one window of context 16"),
        (["--seed", "-1"], "seed is -1"),
        (["--steps", "0"], "training.steps is 0"),
    ],
)
def test_an_argument_that_does_not_fit(here, tmp_path, snapshot, config_file, tiny, arguments, part):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin1.txt").write_bytes("café ".encode("latin-1") * 200)
    (tmp_path / "short.txt").write_text("too short")
    path = config_file(tiny())
    before = snapshot()
    assert_refused(here("train", path, "--out", "out", *arguments), part)
    after = snapshot()
    assert {path: after[path] for path in before} == before
    assert not (tmp_path / "out" / "run.json").exists() or "short.txt" in arguments


def test_an_output_folder_that_holds_another_experiment(here, tmp_path, snapshot, config_file, tiny):
    run(tiny(steps=1), tmp_path / "out")
    path = config_file(tiny())
    before = snapshot()
    assert_refused(here("train", path, "--out", "out"), "holds another run ('tiny', seed 0)")
    assert_refused(here("train", path, "--out", "out", "--resume"), "holds another run")
    assert_refused(here("train", path, "--out", "out", "--set", "training.steps=1"), "add --resume")
    assert_refused(here("compare", path, "--out", "out"), "exists and is no comparison")
    assert_refused(here("train", path, "--out", "."), "is no run folder")
    assert snapshot() == before


def test_a_comparison_that_does_not_fit(here, tmp_path, snapshot, config_file, tiny):
    one, other = config_file(tiny("one"), "one.yaml"), config_file(tiny("ONE"), "other.yaml")
    compiled = config_file(tiny("two", compile=True), "two.yaml")
    before = snapshot()
    assert_refused(here("compare", one, other), "Two arms are called")
    assert_refused(here("compare", one, compiled), "torch.compile")
    assert_refused(here("compare", one, "--reference", "two"), "the arms are: one")
    assert snapshot() == before


def test_a_comparison_that_changed_since(here, tmp_path, snapshot, config_file, tiny):
    path = config_file(tiny("one"))
    (tmp_path / "out").mkdir()
    old = {"format": 1, "arms": ["one"], "fingerprints": {"one": "x"}, "seeds": [0], "created": "then"}
    (tmp_path / "out" / "comparison.json").write_text(json.dumps(old))
    before = snapshot()
    assert_refused(here("compare", path, "--out", "out"), "'one' is set up differently")
    assert snapshot() == before


def test_folders_that_hold_nothing_to_show(here, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "missing"):
        assert_refused(here("report", folder), folder)
        assert_refused(here("generate", folder), "holds no run")


def test_a_loss_that_is_not_finite(here, tmp_path, config_file, tiny):
    result = here("train", config_file(tiny(lr=1e30)), "--out", "out")
    assert (result.code, "Traceback" in result.err) == (2, False)
    assert result.err.startswith("error: The loss was not finite at step 2; the checkpoint of step 0 is kept")


def test_the_real_process_ends_in_the_same_way(start, tmp_path, config_file, tiny):
    misspelt = tmp_path / "bad.yaml"
    misspelt.write_text("trainin: {}\n")
    cases = [
        (["train", misspelt], "Did you mean 'training'?"),
        (["compare", config_file(tiny()), "--set", "nothing"], "has no value"),
        (["report", "missing"], "missing"),
    ]
    for process, part in [(start(*arguments), part) for arguments, part in cases]:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, len(err.splitlines())) == (2, "", 1)
        assert part in err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train"], "Missing argument 'config'; dropout train --help says what there is."),
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["compare", "--seeds", "0"], "'--seeds'"),
        (["train", "--x"], "No such option: --x"),
        (["train", "my.yaml", "--threads", "0"], "'--threads'"),
        (["generate", "run", "--prompt", "caf\udce9"], r"'caf\udce9' is not UTF-8 text"),
        (["generate", "run", "--prompt", "\x1b[2J"], r"'\x1b[2J' has control characters"),
    ],
)
def test_a_command_line_that_does_not_parse(here, arguments, part):
    assert_refused(here(*arguments), part)


def test_a_folder_that_cannot_be_written_to(here, tmp_path, snapshot, config_file, tiny):
    path = config_file(tiny())
    (tmp_path / "file").write_text("x")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    before = snapshot()
    for out, part in [
        ("file", "file is a file"),
        ("file/below", "a part of the path is a file and no folder"),
        ("n" * 300, "the name is too long"),
        ("circle/run", "symbolic links lead in a circle"),
        ("~nouser/run", "there is no such user's home"),
    ]:
        for command in ("train", "compare", "tune"):
            assert_refused(here(command, path, "--out", out), part)
    assert snapshot() == before
    assert {path.name for path in tmp_path.iterdir()} == {"my.yaml", "file", "circle"}


def test_a_refused_run_leaves_no_folder(here, tmp_path, config_file, tiny):
    (tmp_path / "short.txt").write_text("too short")
    path = config_file(tiny())
    assert_refused(here("train", path, "--out", "some/where/new", "--data", "short.txt"), "one window")
    assert {path.name for path in tmp_path.iterdir()} == {"my.yaml", "short.txt"}


def test_engines_without_a_number_and_arms_that_stand_twice(here, tmp_path, snapshot, config_file, tiny):
    path = config_file(tiny())
    (tmp_path / "finetune.py").write_text("def train(trial):\n    trial.report(step=1, val_loss=1.0)\n")
    (tmp_path / "arms.yaml").write_text("- {name: a}\n- {name: a}\n")
    (tmp_path / "space.yaml").write_text("settings: {lr: [0.1, 0.2]}\n")
    before = snapshot()
    for on in ("", "local:"):
        assert_refused(here("compare", path, "--on", on), "names no engine")
    own = ("finetune.py:train", "--arms", "arms.yaml", "--space", "space.yaml")
    assert_refused(here("tune", *own), "Two arms are called 'a'")
    assert snapshot() == before
