"""Which images a run sees, and how they are split."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...runs.task import Splits
from ..content_split import split_by_content
from .augment import ImageAugment
from .idx import read_images, read_labels

DIGITS = "digits"
# What is held out: a fifth for validation, and a fifth for test where no test files say otherwise.
HELD_OUT = 0.2
# The names of MNIST's files begin so: for training, for test.
IN_FOLDER = ("train", "t10k")

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """The images of one run.

    Args:
        source: ``digits``, which come with the package, or a folder with the four IDX files of MNIST or
            Fashion-MNIST under their own names, gzipped or not.
        train_images: use only the first so many training images; None uses all. They lie in a fixed order
            that is as good as random, so a larger number adds to a smaller one.
        augment: random changes of the training images.

    Raises:
        InputError: for a limit below 1.
    """

    source: str = DIGITS
    train_images: int | None = None
    augment: ImageAugment = field(default_factory=ImageAugment)

    def __post_init__(self) -> None:
        if self.train_images is not None and self.train_images < 1:
            raise InputError(
                f"data.train_images is {self.train_images}, but it is 1 or more: "
                "--set data.train_images=null uses all"
            )


@dataclass(frozen=True, kw_only=True)
class ImageSplit:
    """Images with their classes.

    Attributes:
        images: (images, rows, columns) uint8.
        labels: (images,) int64.
        classes: how many classes there are, in all splits together.
    """

    images: Tensor
    labels: Tensor
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def manifest(self) -> dict[str, int | str]:
        """Return how many images there are and their digest."""
        digest = hashlib.sha256(self.images.numpy().tobytes() + self.labels.numpy().tobytes())
        return {"images": len(self), "sha256": digest.hexdigest()}


def prepare_images(config: ImageData) -> Splits:
    """Read the images and split them; the same files give the same splits, whatever the run's seed.

    Raises:
        InputError: for files that are missing, damaged or do not belong together.
    """
    parts = digits() if config.source == DIGITS else folder(Path(config.source))
    images, labels = parts["train"]
    limit = config.train_images
    if limit is not None and limit > len(labels):
        raise InputError(
            f"data.train_images is {limit:,}, but {config.source} has {len(labels):,} images to train on: "
            "--set data.train_images=null uses all"
        )
    parts["train"] = images[:limit], labels[:limit]
    classes = 1 + max(int(labels.max(initial=0)) for _, labels in parts.values())
    splits = {name: as_split(*pair, classes) for name, pair in parts.items()}
    for name, split in splits.items():
        if not len(split):
            raise InputError(f"{config.source} has too few images: none is left for {name}.")
    manifest = {name: split.manifest() for name, split in splits.items()}
    return Splits(**splits, manifest={"source": config.source, **manifest})


def digits() -> dict[str, Pair]:
    """Return the digits that come with the package, by their use."""
    shares = {"train": 1 - 2 * HELD_OUT, "validation": HELD_OUT, "test": HELD_OUT}
    return split_images(read_pair(Path(__file__).parent, "digits"), shares)


def folder(path: Path) -> dict[str, Pair]:
    """Return the images of a folder by their use; the files for test stay what they are."""
    train, test = (read_pair(path, use) for use in IN_FOLDER)
    sizes = [images.shape[1:] for images, _ in (train, test)]
    if sizes[0] != sizes[1]:
        told = " and ".join(f"{rows} x {columns}" for rows, columns in sizes)
        raise InputError(f"{path} has images of {told} for train and test; give files of one data set.")
    return {**split_images(train, {"train": 1 - HELD_OUT, "validation": HELD_OUT}), "test": test}


def split_images(pair: Pair, shares: dict[str, float]) -> dict[str, Pair]:
    """Return images with their labels, split by what they show."""
    images, labels = pair
    places = split_by_content((image.tobytes() for image in images), shares)
    return {name: (images[chosen], labels[chosen]) for name, chosen in places.items()}


def as_split(images: np.ndarray, labels: np.ndarray, classes: int) -> ImageSplit:
    """Return arrays as a split."""
    return ImageSplit(
        images=torch.from_numpy(images.copy()),
        labels=torch.from_numpy(labels.astype(np.int64)),
        classes=classes,
    )


def read_pair(folder: Path, name: str) -> Pair:
    """Return the images and labels of the two files of this name in a folder.

    Raises:
        InputError: for a file that is missing or damaged, or as many labels as there are no images.
    """
    paths = [file_in(folder, f"{name}-{what}", f"idx{n}-ubyte") for what, n in (("images", 3), ("labels", 1))]
    images, labels = read_images(paths[0]), read_labels(paths[1])
    if len(images) != len(labels):
        raise InputError(
            f"{paths[0]} holds {len(images):,} images, but {paths[1]} {len(labels):,} labels; they do not "
            "belong together."
        )
    return images, labels


def file_in(folder: Path, name: str, ending: str) -> Path:
    """Return the file of this name, gzipped or not, with a hyphen or a dot before its ending."""
    for separator in "-.":
        for packed in ("", ".gz"):
            path = folder / f"{name}{separator}{ending}{packed}"
            if path.is_file():
                return path
    raise InputError(
        f"data.source: there is no {name}-{ending} or {name}-{ending}.gz in {folder}; a folder of images has "
        f"{', '.join(f'{use}-images-idx3-ubyte and {use}-labels-idx1-ubyte' for use in IN_FOLDER)}, "
        f"and {DIGITS!r} needs no files."
    )
