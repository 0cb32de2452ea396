"""A cell knows its name, its folder and whether it is finished."""

import json

from transformer_dropout.compare.cells import Cell, config_as_text, make_cells
from transformer_dropout.runs.run import run


def test_cells_go_seed_by_seed_so_that_an_early_look_compares_all_arms(tmp_path, tiny):
    cells = make_cells([tiny("A b"), tiny("c")], [0, 7], tmp_path)
    assert [(cell.config.name, cell.config.seed) for cell in cells] == [
        ("A b", 0),
        ("c", 0),
        ("A b", 7),
        ("c", 7),
    ]
    assert cells[2].folder == tmp_path / "runs" / "a-b" / "seed-7"
    assert cells[2].name == "A b, seed 7"


def test_a_finished_run_of_another_config_does_not_count(tmp_path, tiny):
    run(tiny(), tmp_path / "run")
    assert Cell(config=tiny(), folder=tmp_path / "run").finished
    assert not Cell(config=tiny(lr=0.5), folder=tmp_path / "run").finished


def test_a_record_that_a_kill_cut_short_is_not_finished(tmp_path, tiny):
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished"})[:-5])
    assert not Cell(config=tiny(), folder=tmp_path).finished


def test_a_config_as_text_has_the_names_of_the_config(tiny):
    config = tiny("A b", seed=3)
    written = config_as_text(config)
    assert (written.name, written.seed) == ("A b", 3)
    assert written.to_yaml() == config.to_yaml()
    assert written.fingerprint() == config.fingerprint()
    assert written.slug() == config.slug()


def test_a_cell_is_trained_by_the_module_that_is_named(tmp_path, tiny):
    assert make_cells([tiny()], [0], tmp_path)[0].module == "transformer_dropout.runs"
    assert make_cells([tiny()], [0], tmp_path, module="mine")[0].module == "mine"


def test_a_run_that_has_not_finished_or_not_begun_does_not_count(tmp_path, tiny):
    cell = Cell(config=tiny(), folder=tmp_path)
    assert not cell.finished
    for status, finished in (("running", False), ("finished", True)):
        record = {"status": status, "fingerprint": tiny().fingerprint()}
        (tmp_path / "run.json").write_text(json.dumps(record))
        assert cell.finished is finished
