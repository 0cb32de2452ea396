"""Arms and seeds in one folder: what is refused, what is added, what is run."""

import json
from collections import namedtuple
from dataclasses import replace

import pytest

from transformer_dropout.compare import comparison
from transformer_dropout.compare.cells import make_cells
from transformer_dropout.compare.comparison import (
    check_arms,
    opened_comparison,
    prepare_data,
    run_cells,
)
from transformer_dropout.compare.engines import Resources, choose_engine
from transformer_dropout.errors import InputError
from transformer_dropout.runs.run import run

Data = namedtuple("Data", "manifest")
ABOUT = {"command": "dropout compare a.yaml", "reference": None}


@pytest.fixture
def arms(tiny, learned):
    return [tiny("none"), tiny("learned", recipe=learned)]


def opened(folder, arms, seeds, about):
    """Open a comparison and let it go."""
    with opened_comparison(folder, arms, seeds, about):
        pass


def local(folder, jobs=1):
    return choose_engine(None, folder, Resources(jobs=jobs))


def content(folder):
    return json.loads((folder / "comparison.json").read_text())


def test_arms_that_share_a_folder_name_are_refused(tiny):
    with pytest.raises(InputError, match=r"Two arms are called 'p 0\.1' and 'P=0\.1'"):
        check_arms([tiny("P=0.1"), tiny("p 0.1")])


def test_an_arm_that_does_not_fit_is_refused_before_anything_runs(tiny, learned):
    with pytest.raises(InputError, match="cannot be split among 3 heads"):
        check_arms([tiny("none"), tiny("bad", recipe=[learned[0] | {"heads": 3}])])


def test_arms_of_two_backends_are_refused(tiny):
    with pytest.raises(InputError, match=r"set training\.compile alike"):
        check_arms([tiny("a"), tiny("b", compile=True)])


def test_a_new_comparison_is_written_down(tmp_path, arms):
    opened(tmp_path / "new", arms, [0, 1], ABOUT)
    written = content(tmp_path / "new")
    assert (written["arms"], written["seeds"], written["command"]) == (
        ["none", "learned"],
        [0, 1],
        ABOUT["command"],
    )


def test_seeds_and_arms_are_only_ever_added(tmp_path, arms, tiny):
    folder = tmp_path / "new"
    opened(folder, arms, [0, 1], ABOUT)
    created = content(folder)["created"]
    opened(folder, [tiny("third")], [1, 4], ABOUT)
    assert content(folder)["arms"] == ["none", "learned", "third"]
    assert content(folder)["seeds"] == [0, 1, 4]
    assert content(folder)["created"] == created


def test_an_arm_that_changed_is_refused_and_nothing_is_overwritten(tmp_path, arms, tiny):
    opened(tmp_path / "new", arms, [0], ABOUT)
    before = (tmp_path / "new" / "comparison.json").read_bytes()
    with pytest.raises(InputError, match="in which 'none' is set up differently"):
        opened(tmp_path / "new", [tiny("none", lr=0.5)], [0, 1], ABOUT)
    assert (tmp_path / "new" / "comparison.json").read_bytes() == before


def test_the_seed_of_a_config_does_not_make_it_another_arm(tmp_path, arms):
    opened(tmp_path / "new", arms, [0], ABOUT)
    opened(tmp_path / "new", [replace(arm, seed=5) for arm in arms], [0], ABOUT)


def test_a_folder_of_something_else_is_refused(tmp_path, arms):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="exists and is no comparison"):
        opened(tmp_path, arms, [0], ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not valid JSON: choose another folder"),
        ('{"format": 1', "is not valid JSON: choose another folder"),
        ("{}", "is damaged"),
        ("[1]", "is not a JSON object: choose another folder"),
        ('{"format": 1, "fingerprints": [], "seeds": []}', "is damaged"),
        ('{"format": 99}', "has a newer format"),
    ],
)
def test_a_comparison_that_cannot_be_read_is_refused_and_kept(tmp_path, arms, text, words):
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(InputError, match=words):
        opened(tmp_path, arms, [0], ABOUT)
    assert (tmp_path / "comparison.json").read_text() == text


def test_a_second_comparison_at_once_is_told_so_and_a_later_one_is_not(tmp_path, arms):
    with opened_comparison(tmp_path / "out", arms, [0], ABOUT):
        before = content(tmp_path / "out")
        with pytest.raises(InputError, match=r"Another comparison is going on in .*out; wait for it"):
            opened(tmp_path / "out", arms, [0, 1], ABOUT)
        assert content(tmp_path / "out") == before
    opened(tmp_path / "out", arms, [0, 1], ABOUT)


def test_arms_that_fall_together_in_separate_calls_are_refused(tmp_path, tiny):
    opened(tmp_path / "out", [tiny("p 0.1")], [0], ABOUT)
    with pytest.raises(InputError, match=r"an arm called 'p 0\.1', which falls together with 'P=0\.1'"):
        opened(tmp_path / "out", [tiny("P=0.1", lr=0.1)], [0], ABOUT)
    assert content(tmp_path / "out")["arms"] == ["p 0.1"]


@pytest.mark.parametrize("arms", [[("a", 1.0), ("A", 1.0)], [("a", 1.0), ("a", 2.0)]])
def test_a_refused_comparison_leaves_no_folder(tmp_path, tiny, arms):
    with pytest.raises(InputError, match="Two arms are called"):
        opened(tmp_path / "out", [tiny(name, lr=lr) for name, lr in arms], [0], ABOUT)
    assert not list(tmp_path.iterdir())


def test_what_a_kill_at_the_start_leaves_is_taken_up(tmp_path, arms):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".comparison.lock").touch()
    (tmp_path / "out" / ".comparison.json.123").write_text('{"form')
    opened(tmp_path / "out", arms, [0], ABOUT)
    assert content(tmp_path / "out")["seeds"] == [0]


def test_one_arm_that_crashes_leaves_the_others_alone(tmp_path, tiny):
    cells = make_cells([tiny("diverges", lr=1e30), tiny("sound")], [0], tmp_path)
    told, counted = {}, []
    outcomes = run_cells(
        cells,
        local(tmp_path),
        on_event=lambda cell, event: told.setdefault(cell.name, []).append(event),
        on_outcome=counted.append,
    )
    assert counted == outcomes
    assert {outcome.cell.config.name: outcome.status for outcome in outcomes} == {
        "diverges": "failed",
        "sound": "finished",
    }
    assert told.keys() == {cell.name for cell in cells}
    assert told["sound, seed 0"][-1]["step"] == 20


def test_finished_cells_need_neither_process_nor_data(tmp_path, tiny):
    text = tmp_path / "text.txt"
    text.write_text("All of the text that there is.\n" * 40)
    arm = tiny("a", steps=1)
    cells = make_cells([replace(arm, data=replace(arm.data, source=str(text)))], [0, 1], tmp_path)
    for cell in cells:
        run(cell.config, cell.folder)
    text.unlink()
    prepare_data(cells)
    outcomes = run_cells(cells, local(tmp_path), on_event=pytest.fail, on_outcome=lambda outcome: None)
    assert [outcome.status for outcome in outcomes] == ["finished", "finished"]


def test_missing_data_are_told_before_a_process_starts(tmp_path, tiny):
    arm = tiny("a")
    arm = replace(arm, data=replace(arm.data, source=str(tmp_path / "gone.txt")))
    with pytest.raises(InputError, match="There is no file or folder"):
        prepare_data(make_cells([arm], [0], tmp_path))


def test_a_comparison_keeps_its_id_and_its_age(tmp_path, arms):
    opened(tmp_path / "new", arms[:1], [1], ABOUT)
    first = content(tmp_path / "new")
    assert len(first["id"]) == 32 and first["format"] == 1
    opened(tmp_path / "new", arms, [0], ABOUT | {"reference": "none"})
    again = content(tmp_path / "new")
    assert (again["id"], again["created"], again["seeds"]) == (first["id"], first["created"], [0, 1])
    assert again["fingerprints"].keys() == {"none", "learned"} and again["reference"] == "none"
    opened(tmp_path / "other", arms[:1], [1], ABOUT)
    assert content(tmp_path / "other")["id"] != first["id"]


def test_data_are_made_ready_once_and_show_what_a_sketch_cannot(tiny, monkeypatch):
    asked, fitted = [], []
    monkeypatch.setattr(comparison, "prepare", lambda config: asked.append(config) or Data(manifest={}))
    monkeypatch.setattr(comparison, "check_fit", lambda *given: fitted.append(given))
    first, same = tiny("a"), tiny("b", lr=0.5)
    other = replace(tiny("c"), data=replace(first.data, validation_fraction=0.3))
    sketches = {"b": None, "c": "sizes"}
    monkeypatch.setattr(comparison, "sketch_of_splits", lambda config: sketches[config.name])
    comparison.prepare_configs([first, same, other])
    assert [config.name for config in asked] == ["b", "c"]
    assert fitted == [(same, Data(manifest={}))]


def test_arms_of_different_data_are_refused_before_a_run_is_spent_on_them(tiny, tmp_path):
    arms = [tiny("a"), tiny("b", lr=0.5)]
    prepare_data(make_cells(arms, [0], tmp_path))
    less = replace(tiny("less"), data=replace(arms[0].data, validation_fraction=0.3))
    said = r"The data of the arm 'b' and of the arm 'less' differ \(train_sha256\)"
    with pytest.raises(InputError, match=said):
        prepare_data(make_cells([*arms, less], [0], tmp_path))


def test_an_arm_of_other_data_than_the_finished_runs_is_refused_too(tiny, tmp_path):
    first = tiny("a")
    (finished,) = make_cells([first], [0], tmp_path)
    run(finished.config, finished.folder)
    prepare_data([finished, *make_cells([tiny("b", lr=0.5)], [0], tmp_path)])
    less = replace(tiny("less"), data=replace(first.data, validation_fraction=0.3))
    with pytest.raises(InputError, match=r"The data of the run in .*seed-0 and of the arm 'less' differ"):
        prepare_data(make_cells([first, less], [0], tmp_path))
