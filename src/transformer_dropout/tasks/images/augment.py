"""Random shifts, crops and flips of training images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError


@dataclass(frozen=True, kw_only=True)
class ImageAugment:
    """How training images are changed at random, each on its own and anew in each step.

    Args:
        shift: moved by at most so many whole pixels in each direction; black comes in.
        crop: a window with at most this share of each side cut off, enlarged to the whole.
        flip: whether half of the images are mirrored, left to right.

    Raises:
        InputError: for a shift below 0, or a crop outside [0, 1).
    """

    shift: int = 0
    crop: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise InputError(f"data.augment.shift is {self.shift}, but it is a number of pixels from 0 on.")
        if not 0 <= self.crop < 1:
            raise InputError(f"data.augment.crop is {self.crop}, but it is a share from 0 to below 1.")


def augmented(images: Tensor, config: ImageAugment, generator: torch.Generator) -> Tensor:
    """Return images, each seen through a window of its own.

    A pixel at ``u`` in [-1, 1] shows the image at ``s f u + c``: ``s`` is one minus the share cut off, ``f``
    is -1 for a mirrored image, ``c`` is where the window lies plus the shift.

    Args:
        images: (images, rows, columns).
        config: how far.
        generator: where the random numbers come from.
    """
    if config == ImageAugment():
        return images
    count, device = len(images), images.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    size = 1 - config.crop * uniform(count)
    centre = (1 - size)[:, None] * (2 * uniform(count, 2) - 1)
    pixels = torch.randint(-config.shift, config.shift + 1, (count, 2), generator=generator).to(device)
    sides = torch.tensor([images.shape[2], images.shape[1]], device=device)
    offset = centre + 2 * pixels / sides
    mirror = torch.where(uniform(count) < 0.5, -1.0, 1.0) if config.flip else torch.ones_like(size)
    zero = torch.zeros_like(size)
    windows = torch.stack([size * mirror, zero, offset[:, 0], zero, size, offset[:, 1]], 1).view(count, 2, 3)
    grid = F.affine_grid(windows, [count, 1, *images.shape[1:]], align_corners=False)
    return F.grid_sample(images[:, None], grid, padding_mode="zeros", align_corners=False)[:, 0]
