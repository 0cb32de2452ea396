import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.tasks.language.data.documents import Document, with_text


def test_blank_documents_are_dropped():
    kept = with_text([Document("a", " \n"), Document("b", "x"), Document("c", "")], "here")
    assert [document.name for document in kept] == ["b"]


def test_no_text_at_all_is_an_error_that_names_the_source():
    with pytest.raises(InputError, match="here holds no text"):
        with_text([Document("a", "\n\n")], "here")
