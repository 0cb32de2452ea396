"""Dropout layers, one file each; `__all__` is the list that recipes may name."""

from ._base import DropoutLayer as DropoutLayer
from ._base import RateLayer as RateLayer
from ._token_gate import TokenGate as TokenGate
from .alpha_dropout import AlphaDropout
from .block_dropout import LearnedBlockDropout
from .concrete_dropout import ConcreteDropout
from .drop_head import DropHead
from .drop_key import DropKey
from .drop_path import DropPath
from .dropout import Dropout
from .gaussian_dropout import GaussianDropout
from .gaussian_noise import GaussianNoise
from .importance_dropout import ImportanceDropout
from .layer_drop import LayerDrop
from .learned_dropout import LearnedDropout
from .precomputed import PrecomputedLearnedDropout
from .standout import Standout
from .token_dropout import TokenDropout

__all__ = [
    "AlphaDropout",
    "ConcreteDropout",
    "DropHead",
    "DropKey",
    "DropPath",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "ImportanceDropout",
    "LayerDrop",
    "LearnedBlockDropout",
    "LearnedDropout",
    "PrecomputedLearnedDropout",
    "Standout",
    "TokenDropout",
]
