"""What two runs return, compared, and the inputs of the second."""

import math

import pytest
import torch

from transformer_dropout.surgery._outputs import distance, other_tokens, same

IDS = torch.arange(6).view(2, 3)
MOVED = [[4, 3, 5], [1, 0, 2]]  # the largest stays where it was


def test_lists_of_other_shapes_are_not_the_same():
    ones = [torch.tensor([1.0, 2.0]), torch.tensor(3.0)]
    for tolerance in (None, 1e-4):
        assert same(ones, [one.clone() for one in ones], tolerance)
        for others in (ones[:1], [*ones, ones[0]], [ones[0], torch.tensor([3.0])], ones[::-1]):
            assert not same(ones, others, tolerance)


@pytest.mark.parametrize(
    ("one", "other", "exactly", "nearly"),
    [
        (1.0, 1.0, True, True),
        (0.0, 5e-5, False, True),  # absolutely
        (1000.0, 1000.05, False, True),  # relatively
        (0.0, 5e-4, False, False),
        (1000.0, 1001.0, False, False),
        (math.nan, math.nan, False, True),
        (math.nan, 0.0, False, False),
    ],
)
def test_numbers_are_the_same_to_the_bit_or_within_a_tolerance(one, other, exactly, nearly):
    pair = [[torch.ones(2), torch.tensor([0.5, number])] for number in (one, other)]
    assert (same(*pair), same(*pair, 1e-4)) == (exactly, nearly)


def test_the_distance_is_the_largest_difference():
    one, other = torch.tensor([1.0, math.nan, 3.0, -1.0]), torch.tensor([1.5, math.nan, 1.0, -1.0])
    assert distance(one, other) == distance(other, one) == 2.0
    assert distance(one, one) == 0.0


def test_tokens_are_moved_and_images_changed():
    assert other_tokens(IDS).tolist() == MOVED
    assert other_tokens(torch.tensor([[1.0, 2.0]])).tolist() == [[0.5, 1.0]]
    assert other_tokens(torch.tensor([2, 4])).tolist() == [1, 2]
    for alike in (torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.long), None, 3):
        assert other_tokens(alike) is None


def test_of_named_inputs_those_stay_that_say_where_tokens_are():
    told = ["attention_mask", "bbox", "position_ids", "token_type_ids", "image_grid_thw"]
    given = dict.fromkeys(["input_ids", *told], IDS) | {"alike": torch.zeros(2), "use_cache": False}
    found = other_tokens(given)
    assert list(found) == list(given)
    assert found["input_ids"].tolist() == MOVED
    assert all(found[name] is given[name] for name in [*told, "alike", "use_cache"])


def test_of_several_inputs_each_is_changed_that_can_be():
    alike = torch.zeros(2)
    first, second, third = other_tokens((IDS, alike, None))
    assert first.tolist() == MOVED and second is alike and third is None
