"""Images into classes by a small vision transformer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..runs.task import Splits
from .images.arms import arm, rate
from .images.data import ImageSplit
from .images.task import Images
from .language.decoder import MOST_BLOCKS, MOST_PARAMETERS


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The transformer's shape.

    Args:
        width: channels of a token.
        heads: attention heads.
        blocks: transformer blocks.
        patch: rows and columns of the square that makes a token; it divides the image's sides.

    Raises:
        InputError: for a number below 1, a model that nobody could build, or heads that do not divide the
            width.
    """

    width: int = 48
    heads: int = 4
    blocks: int = 3
    patch: int = 2

    def __post_init__(self) -> None:
        for name in ("width", "heads", "blocks", "patch"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}, but it must be at least 1.")
        # Before a block is built: many would take minutes.
        if self.blocks > MOST_BLOCKS or self.blocks * 12 * self.width**2 > MOST_PARAMETERS:
            raise InputError(
                f"model.blocks {self.blocks} of model.width {self.width} are too large; at most "
                f"{MOST_BLOCKS:,} blocks and {MOST_PARAMETERS:.0e} parameters are built."
            )
        if self.width % self.heads:
            raise InputError(f"model.heads {self.heads} does not divide model.width {self.width}.")


class VisionTransformer(nn.Module):
    """Square patches as tokens, blocks that normalise first, the mean over tokens into class scores.

    Args:
        config: the shape.
        sides: rows and columns of the images.
        classes: how many there are.

    Shape:
        (batch, rows, columns) -> (batch, classes).

    Raises:
        InputError: for a patch that does not divide the sides.

    Paper: Dosovitskiy et al. 2021, "An image is worth 16x16 words".
    """

    def __init__(self, config: ViTConfig, sides: tuple[int, int], classes: int) -> None:
        super().__init__()
        width, patch = config.width, config.patch
        if any(side % patch for side in sides):
            fits = [n for n in range(1, min(sides)) if not any(side % n for side in sides)]
            raise InputError(
                f"model.patch {patch} does not divide images of {sides[0]} x {sides[1]}; use one of "
                f"{', '.join(map(str, fits))}: --set model.patch={fits[-1]}"
            )
        self.patches = nn.Conv2d(1, width, kernel_size=patch, stride=patch)
        tokens = (sides[0] // patch) * (sides[1] // patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*(self.block(config) for _ in range(config.blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    @staticmethod
    def block(config: ViTConfig) -> nn.Module:
        return nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            4 * config.width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x[:, None]).flatten(2).mT
        return self.head(self.norm(self.blocks(tokens + self.positions)).mean(1))


class ImagesVit(Images):
    """Grey images into classes, as `Images`, by a vision transformer."""

    Model = ViTConfig

    def build(self, model: Any, splits: Splits) -> nn.Module:
        images: ImageSplit = splits.train
        _, rows, columns = images.images.shape
        return VisionTransformer(model, (rows, columns), images.classes)

    def default_arms(self, model: Mapping[str, Any], data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return no regularizer, dropout and DropPath at their usual places, and three rivals."""
        places = ("embedding", "attention_output", "mlp_hidden", "mlp_output")
        learned = {
            "layer": "LearnedDropout",
            "heads": 4,
            "causal": False,
            "penalty": "squared",
            "weight": 0.1,
        }
        drop_path = {
            "select": "block",
            "layer": "DropPath",
            "p": 0.2,
            "depth": {"linear": {"start": 0.0, "end": 1.0}},
        }
        return [
            arm("none", []),
            arm("dropout p=0.1", [rate(place, 0.1) for place in places]),
            arm("DropPath 0.2", [drop_path]),
            arm("weight decay 1", [], weight_decay=1.0),
            arm("shifts of 1 pixel", [], shift=1),
            arm("LearnedDropout", [{"select": "mlp_output", **learned}]),
        ]
