import numpy as np
import pytest

import transformer_dropout as td
from transformer_dropout.tasks.regression.table import read_table


@pytest.fixture
def table(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "table.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def refused(path, *words, wanted=None):
    with pytest.raises(td.InputError) as caught:
        read_table(path, wanted)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,2\n3,4.5\n",
        "a;b\r\n1;2\r\n3;4.5",
        "a\tb\n1\t2\n\n3\t4.5\n\n",
        '\ufeff"a", b\n1, 2\n"3",4.5e0\n',
    ],
)
def test_numbers_are_read_however_they_are_separated(table, text):
    found = read_table(table(text))
    assert found.columns == ("a", "b")
    assert np.array_equal(found.values, [[1, 2], [3, 4.5]])


def test_only_the_columns_asked_for_are_read_in_their_order(table):
    found = read_table(table("a,name,b\n1,x,2\n3,y,4\n"), ("b", "a"))
    assert np.array_equal(found.values, [[2, 1], [4, 3]])
    assert np.array_equal(found.of(("a",)), [[1], [3]])


@pytest.mark.parametrize("text", ["", "\n\n", "a,b\n", "a,b\n\n"])
def test_a_file_without_rows_is_named(table, text):
    refused(table(text), "no rows")


@pytest.mark.parametrize("cell", ["x", "", "nan", "inf", "1,5", "NA"])
def test_a_cell_that_is_no_number_is_named_with_its_place(table, cell):
    refused(table(f'a,b\n1,2\n3,"{cell}"\n'), "line 3, b", repr(cell), "data.columns")


def test_a_line_of_another_length_is_named(table):
    refused(table("a,b\n1,2\n3\n"), "line 3", "1 values", "2 columns")
    refused(table("a,b\n1,2,3\n"), "line 2", "3 values", "2 columns")


def test_a_first_line_that_names_no_columns_is_named(table):
    refused(table("a,a\n1,2\n"), "'a' twice")
    refused(table("a,\n1,2\n"), "without a name")


def test_a_column_that_is_not_there_is_named_with_the_nearest(table):
    refused(table("price,rooms\n1,2\n"), "'prize'", "'price'", wanted=("prize",))


def test_what_is_no_text_file_is_named(table, tmp_path):
    refused(table("größe,b\n1,2\n", "latin-1"), "UTF-8")
    refused(tmp_path / "nowhere.csv", "nowhere.csv", "cannot be read")
    refused(tmp_path, "cannot be read")


def test_an_unclosed_quote_is_named(table):
    refused(table('a,b\n1,"2\n3,4\n'), "line 3")
