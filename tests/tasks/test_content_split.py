import hashlib

import pytest

from transformer_dropout.tasks.content_split import split_by_content

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def examples(count):
    return [f"example {at}".encode() for at in range(count)]


def contents(rows, split):
    return {name: [rows[at] for at in indices] for name, indices in split.items()}


def test_every_example_lies_in_one_split_and_the_shares_are_kept():
    split = split_by_content(examples(5000), SHARES)
    assert sorted(at for part in split.values() for at in part) == list(range(5000))
    for name, share in SHARES.items():
        assert len(split[name]) / 5000 == pytest.approx(share, abs=0.02)


def test_the_order_of_the_file_does_not_matter():
    rows = examples(200)
    assert contents(rows, split_by_content(rows, SHARES)) == contents(
        rows[::-1], split_by_content(rows[::-1], SHARES)
    )


def test_equal_examples_never_lie_on_both_sides():
    rows = examples(50) * 4
    places = {}
    for name, part in contents(rows, split_by_content(rows, SHARES)).items():
        for row in part:
            assert places.setdefault(row, name) == name


def test_where_an_example_lies_is_what_its_sha256_says():
    for row in examples(20):
        place = int(hashlib.sha256(row).hexdigest()[:16], 16) / 2**64
        expected = "train" if place < 0.6 else "validation" if place < 0.8 else "test"
        assert [name for name, part in split_by_content([row], SHARES).items() if len(part)] == [expected]
