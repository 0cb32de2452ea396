"""Dropout layers, one file each; `__all__` is the list that recipes may name."""

from ._base import DropoutLayer as DropoutLayer
from ._base import RateLayer as RateLayer
from ._token_gate import TokenGate as TokenGate
from ._words import layer_for as layer_for
from ._words import word_for as word_for
from .adversarial_dropout import AdversarialDropout
from .alpha_dropout import AlphaDropout
from .anchored_dropout import AnchoredDropout
from .block_dropout import LearnedBlockDropout
from .concrete_dropout import ConcreteDropout
from .cross_fitted_dropout import CrossFittedDropout
from .drop_head import DropHead
from .drop_key import DropKey
from .drop_path import DropPath
from .dropout import Dropout
from .fourier_dropout import LearnedFourierDropout
from .gaussian_dropout import GaussianDropout
from .gaussian_noise import GaussianNoise
from .importance_dropout import ImportanceDropout
from .layer_drop import LayerDrop
from .learned_dropout import LearnedDropout
from .low_rank_dropout import LearnedLowRankDropout
from .marginal_dropout import LearnedMarginalDropout
from .positionwise_dropout import LearnedPositionwiseDropout
from .precomputed import PrecomputedLearnedDropout
from .shuffled_dropout import LearnedShuffledDropout
from .sigmoid_dropout import LearnedSigmoidDropout
from .sigmoid_straight_through import LearnedSigmoidStraightThrough
from .soft_gate import LearnedSoftGate
from .sparse_relu import SparseReLU
from .standout import Standout
from .token_dropout import TokenDropout

__all__ = [
    "AdversarialDropout",
    "AlphaDropout",
    "AnchoredDropout",
    "ConcreteDropout",
    "CrossFittedDropout",
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
    "LearnedFourierDropout",
    "LearnedLowRankDropout",
    "LearnedMarginalDropout",
    "LearnedPositionwiseDropout",
    "LearnedShuffledDropout",
    "LearnedSigmoidDropout",
    "LearnedSigmoidStraightThrough",
    "LearnedSoftGate",
    "PrecomputedLearnedDropout",
    "SparseReLU",
    "Standout",
    "TokenDropout",
]
