import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.tasks.language.data import open_corpus


def test_a_folder_is_its_text_files_however_deep(tmp_path):
    for name in ("b.txt", "a.md", "deep/er/C.TXT", "code.py", "deep/data.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\r\n", newline="")
    documents = open_corpus(str(tmp_path)).read()
    assert {document.name: document.text for document in documents} == {
        name: f"text of {name}\r\n" for name in ("a.md", "b.txt", "deep/er/C.TXT")
    }


def test_a_file_of_any_suffix_is_one_document(tmp_path):
    file = tmp_path / "words.log"
    file.write_text("naïve\n", encoding="utf-8")
    (document,) = open_corpus(str(file)).read()
    assert (document.name, document.text, document.split) == ("words.log", "naïve\n", None)


def test_fingerprint_follows_content_and_the_names_in_a_folder(notes):
    first = open_corpus(str(notes)).fingerprint
    assert open_corpus(str(notes)).fingerprint == first
    file = notes / "part-0" / "page-00.txt"
    file.rename(file.with_name("other.txt"))
    assert open_corpus(str(notes)).fingerprint != first


def test_a_renamed_single_file_is_the_same_corpus(tmp_path):
    (tmp_path / "a.txt").write_text("same")
    (tmp_path / "b.txt").write_text("same")
    (tmp_path / "c.txt").write_text("other")
    prints = [open_corpus(str(tmp_path / name)).fingerprint for name in ("a.txt", "b.txt", "c.txt")]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("part", ["docs", "code"])
def test_the_standard_library_is_found_by_name(part):
    assert len(open_corpus(f"stdlib-{part}").fingerprint) == 64


@pytest.mark.parametrize("source", ["/no/such/file", "missing.txt", "./folder", "~/not-there-at-all"])
def test_a_missing_path(source):
    with pytest.raises(InputError, match="There is no file or folder"):
        open_corpus(source)


@pytest.mark.parametrize("source", ["stdlib-doc", "sdtlib-docs"])
def test_a_misspelt_source_gets_the_nearest_and_the_forms(source):
    with pytest.raises(InputError, match=r"Did you mean 'stdlib-docs'\?.*dataset:NAME_OR_FOLDER"):
        open_corpus(source)


@pytest.mark.parametrize("source", ["", "dataset:", "wikitext"])
def test_an_unknown_source_gets_the_forms(source):
    with pytest.raises(InputError, match=r"is unknown.*A source is stdlib-docs"):
        open_corpus(source)


def test_a_folder_without_text_files(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(InputError, match=r"holds no \.txt or \.md file"):
        open_corpus(str(tmp_path))


def test_an_empty_file(tmp_path):
    file = tmp_path / "empty.txt"
    file.touch()
    with pytest.raises(InputError, match=r"empty\.txt holds no text"):
        open_corpus(str(file)).read()


def test_a_folder_of_empty_files(tmp_path):
    (tmp_path / "a.txt").write_text("\n")
    (tmp_path / "b.md").touch()
    with pytest.raises(InputError, match="holds no text"):
        open_corpus(str(tmp_path)).read()


def test_text_that_is_not_utf8_is_named_with_its_offset(tmp_path):
    (tmp_path / "good.txt").write_text("fine")
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(InputError, match=r"bad\.txt is not UTF-8 text \(byte 0xe9 at offset 3\)"):
        open_corpus(str(tmp_path)).read()
