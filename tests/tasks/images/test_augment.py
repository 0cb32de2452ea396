import pytest
import torch

import transformer_dropout as td
from transformer_dropout.tasks.images.augment import ImageAugment, augmented


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shifted(image, down, right):
    """Return an image moved by whole pixels, with black coming in."""
    rows, columns = image.shape
    moved = torch.zeros_like(image)
    moved[max(down, 0) : rows + min(down, 0), max(right, 0) : columns + min(right, 0)] = image[
        max(-down, 0) : rows - max(down, 0), max(-right, 0) : columns - max(right, 0)
    ]
    return moved


def test_nothing_asked_for_changes_nothing():
    images = torch.rand(3, 8, 8)
    assert augmented(images, ImageAugment(), generator()) is images


def test_a_shift_moves_by_whole_pixels_each_way_and_each_image_on_its_own():
    images = torch.rand(60, 8, 6)
    moved = augmented(images, ImageAugment(shift=2), generator())
    found = set()
    for image, result in zip(images, moved, strict=True):
        places = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.allclose(shifted(image, down, right), result, atol=1e-5)
        ]
        assert len(places) == 1
        found.update(places)
    assert len(found) > 15


def test_a_flip_mirrors_half_of_the_images():
    images = torch.rand(200, 5, 4)
    result = augmented(images, ImageAugment(flip=True), generator())
    mirrored = [torch.allclose(new, old.flip(1), atol=1e-5) for new, old in zip(result, images, strict=True)]
    same = [torch.allclose(new, old, atol=1e-5) for new, old in zip(result, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 70 < sum(mirrored) < 130


def test_a_crop_shows_a_part_of_the_image_and_nothing_from_outside():
    ramp = torch.arange(16.0).expand(50, 16, 16)
    result = augmented(ramp, ImageAugment(crop=0.5), generator())
    steps = result[:, 8, 5:11].diff(dim=1)
    # Where a share of the width is enlarged to the whole, the ramp rises that much more slowly.
    assert (steps >= 0.5 - 1e-3).all() and (steps <= 1 + 1e-3).all()
    assert steps.min() < 0.6 and steps.max() > 0.9
    whole = augmented(torch.ones(50, 16, 16), ImageAugment(crop=0.5), generator())
    assert (whole[:, 1:-1, 1:-1] > 0.99).all()


def test_the_generator_decides():
    images, config = torch.rand(20, 8, 8), ImageAugment(shift=1, crop=0.2, flip=True)
    once, again = (augmented(images, config, generator(3)) for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, augmented(images, config, generator(4)))


@pytest.mark.parametrize("wrong", [{"shift": -1}, {"crop": 1.0}, {"crop": -0.1}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(td.InputError, match=rf"data\.augment\.{next(iter(wrong))}"):
        ImageAugment(**wrong)
