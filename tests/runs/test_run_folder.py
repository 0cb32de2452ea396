"""Who a run folder belongs to, and what is left of one that was refused."""

import json
from dataclasses import replace

import pytest
import torch
from filelock import FileLock

from transformer_dropout.errors import InputError
from transformer_dropout.runs.processes import Processes
from transformer_dropout.runs.run_folder import (
    OWN_NAMES,
    check_folder,
    clear_half_written,
    is_own,
    locked,
)

ALONE = Processes(rank=0, size=1, device=torch.device("cpu"))
HALF_WRITTEN = (".config.yaml.12", ".run.json.3", ".metrics.jsonl.4", ".progress.json.55")
FOREIGN = ("notes.txt", ".run.json", "run.json.3", ".run.json.3x", ".other.json.3", "log.txt.1")


@pytest.fixture
def folder(tmp_path):
    """A function that makes a folder with some files and, where one is given, a record."""

    def make(*names, **record):
        path = tmp_path / "run"
        path.mkdir()
        for name in names:
            (path / name).touch()
        if record:
            (path / "run.json").write_text(json.dumps(record))
        return path

    return make


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_folder_and_one_with_files_of_ours_alone_have_something_to_do(tmp_path, folder, tiny, resume):
    assert check_folder(tiny(), tmp_path / "new", resume) is None
    assert check_folder(tiny(), folder("config.yaml", ".run.lock", HALF_WRITTEN[0]), resume) is None


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_somebody_else_is_refused_by_what_it_holds(folder, tiny, resume):
    with pytest.raises(InputError, match=r"is no run folder \(it holds notes\.txt\)"):
        check_folder(tiny(), folder("config.yaml", "notes.txt"), resume)


def test_a_run_whose_record_is_lost_is_rebuilt_when_asked_for(folder, tiny):
    path = folder()
    (path / "checkpoints" / "best").mkdir(parents=True)
    assert check_folder(tiny(), path, False) is None
    (path / "checkpoints" / "step-00000010").mkdir()
    with pytest.raises(InputError, match="add --resume to rebuild it"):
        check_folder(tiny(), path, False)
    assert check_folder(tiny(), path, True) is None


@pytest.mark.parametrize("resume", [False, True])
def test_another_run_is_refused_by_its_name_and_seed(folder, tiny, resume):
    path = folder(fingerprint="other", name="theirs", seed=7, status="finished")
    with pytest.raises(InputError, match=r"holds another run \('theirs', seed 7\)"):
        check_folder(tiny(), path, resume)


@pytest.mark.parametrize("status", ["running", "interrupted", "finished"])
def test_this_run_is_continued_only_when_asked_for(folder, tiny, status):
    path = folder(fingerprint=tiny().fingerprint(), status=status)
    with pytest.raises(InputError, match=rf"holds this run \({status}\); add --resume"):
        check_folder(tiny(), path, False)
    found = check_folder(tiny(), path, True)
    assert found == (json.loads((path / "run.json").read_text()) if status == "finished" else None)


def test_files_of_ours_are_known_by_their_whole_names(folder):
    assert all(map(is_own, (*OWN_NAMES, *HALF_WRITTEN)))
    assert not any(map(is_own, FOREIGN))
    path = folder(*HALF_WRITTEN, *FOREIGN)
    clear_half_written(path)
    assert {file.name for file in path.iterdir()} == set(FOREIGN)


def test_a_folder_is_held_by_one_run_and_free_afterwards(tmp_path):
    path = tmp_path / "new" / "run"
    second = locked(path, ALONE)
    with locked(path, ALONE):
        with pytest.raises(InputError, match=f"Another process is running in {path}; wait"), second:
            pass
        # It was there before, so the refused one leaves it.
        assert path.is_dir()
    with FileLock(path / ".run.lock").acquire(blocking=False):
        pass


def refused(path, *files):
    """Let a run fail that has written some files."""
    with pytest.raises(ZeroDivisionError), locked(path, ALONE):
        for name in files:
            (path / name).touch()
        raise ZeroDivisionError


def test_a_refused_run_takes_away_what_was_made_for_it_and_nothing_else(tmp_path):
    path = tmp_path / "a" / "b" / "run"
    refused(path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    refused(path)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]
    refused(path, "config.yaml")
    assert (path / "config.yaml").exists()
    (path / "config.yaml").unlink()
    refused(path)
    assert path.exists()


def test_the_first_process_alone_makes_and_holds_the_folder(tmp_path):
    with locked(tmp_path / "run", replace(ALONE, rank=1)):
        assert list(tmp_path.iterdir()) == []
