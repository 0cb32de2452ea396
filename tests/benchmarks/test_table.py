from benchmarks.table import all_rows


def test_no_two_rows_have_one_name_and_path():
    names = [(row.name, row.path) for row in all_rows()]
    assert len(set(names)) == len(names)


def test_every_target_is_a_positive_number():
    assert all(row.target > 0 for row in all_rows())
