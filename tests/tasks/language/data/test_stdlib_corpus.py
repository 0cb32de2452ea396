import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.tasks.language.data.stdlib_corpus import stdlib_corpus

_MODULE = '''"""Module words."""
class Shape:
    """Class words."""
    def area(self):
        """Method words."""
async def later():
    """Later words."""
def silent(): pass
'''


@pytest.fixture
def library(tmp_path):
    files = {
        "shapes.py": _MODULE,
        "package/__init__.py": '"""Package words."""',
        "package/silent.py": "x = 1",
        "package/tests/test_x.py": '"""A test."""',
        "test/test_y.py": '"""A test."""',
        "idlelib/idle_test/test_z.py": '"""A test."""',
        "site-packages/other.py": '"""Not the library."""',
        "_sysconfigdata_linux.py": '"""This machine."""',
        "broken.py": '"""Broken.""" def',
        "odd.py": 'r"""Odd words."""\nx = "\\d" is 3',
        "notes.txt": "no module",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.py").write_bytes('# coding: latin-1\n"""Café words."""\n'.encode("latin-1"))
    return tmp_path


def test_docs_are_docstrings_in_source_order_one_document_a_module(library):
    documents = {document.name: document.text for document in stdlib_corpus("docs", library).read()}
    assert documents == {
        "latin.py": "Café words.",
        "odd.py": "Odd words.",
        "package/__init__.py": "Package words.",
        "shapes.py": "Module words.\n\nClass words.\n\nMethod words.\n\nLater words.",
    }


def test_code_is_the_source_of_the_same_modules(library):
    documents = {document.name: document.text for document in stdlib_corpus("code", library).read()}
    assert sorted(documents) == [
        "latin.py",
        "odd.py",
        "package/__init__.py",
        "package/silent.py",
        "shapes.py",
    ]
    assert documents["shapes.py"] == _MODULE
    assert "Café" in documents["latin.py"]


def test_fingerprint_follows_names_contents_and_part(library):
    def fingerprint(part="docs"):
        return stdlib_corpus(part, library).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint("code") != first
    (library / "test/test_y.py").write_text("changed")
    assert fingerprint() == first
    (library / "shapes.py").rename(library / "forms.py")
    renamed = fingerprint()
    assert renamed != first
    (library / "forms.py").write_text(_MODULE + "#")
    assert fingerprint() not in (first, renamed)


def test_fingerprint_parses_nothing(library, monkeypatch):
    def parse(*args):
        raise AssertionError("parsed")

    monkeypatch.setattr("ast.parse", parse)
    stdlib_corpus("docs", library)


def test_an_interpreter_without_sources_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"no standard library sources .*data\.source=YOUR_FILE"):
        stdlib_corpus("docs", tmp_path)


def test_the_real_library(stdlib_docs):
    splits = stdlib_docs.manifest["splits"]
    assert 1_000_000 < splits["train"]["bytes"] + splits["validation"]["bytes"] < 4_000_000
    assert splits["train"]["documents"] > 300
