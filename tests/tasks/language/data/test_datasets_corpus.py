import sys

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.tasks.language.data import DataConfig, open_corpus, prepare

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def _save(folder, **columns):
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder))
    return f"dataset:{folder}"


def test_rows_of_a_saved_dataset_are_documents(tmp_path):
    source = _save(tmp_path / "saved", text=["one", None, "", "two"], label=[1, 2, 3, 4])
    documents = open_corpus(source).read()
    assert [(document.text, document.split) for document in documents] == [("one", None), ("two", None)]


def test_a_saved_dataset_prepares_and_follows_its_content_not_its_files(tmp_path):
    rows = [f"row {number} of the set" for number in range(60)]
    config = DataConfig(source=_save(tmp_path / "a", body=rows), text_field="body")
    prepared = prepare(config, tmp_path / "cache")
    assert sum(split["documents"] for split in prepared.manifest["splits"].values()) == 60
    first = open_corpus(config.source, "body").fingerprint
    assert open_corpus(_save(tmp_path / "b", body=rows, other=rows), "body").fingerprint == first
    assert open_corpus(_save(tmp_path / "c", body=[*rows[1:], "x"]), "body").fingerprint != first


@pytest.mark.parametrize("held_out", ["validation", "test"])
def test_the_splits_of_a_dataset_are_kept_in_order(tmp_path, held_out):
    splits = {"train": ["c", "a", "b"], held_out: ["z", "y"], "extra": ["never"]}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": rows}) for name, rows in splits.items()}
    ).save_to_disk(str(tmp_path / "both"))
    prepared = prepare(DataConfig(source=f"dataset:{tmp_path / 'both'}"), tmp_path / "cache")
    assert prepared.tokenizer.decode(prepared.train) == "c\0a\0b\0"
    assert prepared.tokenizer.decode(prepared.validation) == "z\0y\0"


def test_one_split_alone_is_split_by_hash(tmp_path):
    rows = datasets.Dataset.from_dict({"text": [f"row {number}" for number in range(50)]})
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "only"))
    splits = prepare(DataConfig(source=f"dataset:{tmp_path / 'only'}"), tmp_path / "cache").manifest["splits"]
    assert splits["train"]["documents"] + splits["validation"]["documents"] == 50
    assert splits["validation"]["documents"] >= 1


def test_what_is_no_saved_folder_goes_to_load_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.jsonl").write_text('{"text": "learn"}\n')
    (tmp_path / "files" / "test.jsonl").write_text('{"text": "check"}\n')
    documents = open_corpus(f"dataset:{tmp_path / 'files'}").read()
    assert [(document.text, document.split) for document in documents] == [
        ("learn", "train"),
        ("check", "validation"),
    ]


def test_name_and_configuration_reach_load_dataset(monkeypatch):
    asked = []

    def load_dataset(*names):
        asked.append(names)
        return datasets.Dataset.from_dict({"text": ["x"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    open_corpus("dataset:wikitext:wikitext-2-v1")
    open_corpus("dataset:owner/name")
    assert asked == [("wikitext", "wikitext-2-v1"), ("owner/name", None)]


def test_a_dataset_that_cannot_be_loaded(monkeypatch):
    def load_dataset(*names):
        raise datasets.exceptions.DatasetNotFoundError("no such dataset.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"cannot load 'nothing': no such dataset\. Use --set data\.source="):
        open_corpus("dataset:nothing")


def test_a_missing_column_names_the_columns(tmp_path):
    source = _save(tmp_path / "saved", body=["x"], label=[1])
    with pytest.raises(InputError, match=r"no column 'text'.*body, label"):
        open_corpus(source)


def test_a_column_of_numbers(tmp_path):
    source = _save(tmp_path / "saved", body=["x"], label=[1])
    with pytest.raises(InputError, match=r"'label'.* holds int, not text"):
        open_corpus(source, "label")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'transformer-dropout\[datasets\]'"):
        open_corpus("dataset:anything")
