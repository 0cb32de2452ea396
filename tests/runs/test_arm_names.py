"""Names that tables, terminals and folders can hold."""

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.runs.arm_names import LONGEST_NAME, check_name, folder_name


@pytest.mark.parametrize("name", ["a", "Größe 3, p=0.1", "x" * LONGEST_NAME])
def test_a_name_that_can_be_printed_is_one(name):
    check_name(name)


@pytest.mark.parametrize("name", ["", "  ", "x" * (LONGEST_NAME + 1), "a\nb", "a\x1b[31m"])
def test_any_other_is_refused(name):
    with pytest.raises(InputError, match="text of 1 to 120 characters that can be printed"):
        check_name(name)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("Dropout, p=0.1", "dropout-p-0.1"), ("-.a_b..", "a-b"), ("日本", "run"), ("..", "run")],
)
def test_a_folder_has_plain_letters_or_another_word(name, folder):
    assert folder_name(name, "run") == folder
