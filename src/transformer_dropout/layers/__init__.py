"""Dropout layers, one file each; `__all__` is the list that recipes may name."""

from ._base import DropoutLayer as DropoutLayer
from ._base import RateLayer as RateLayer
from .dropout import Dropout
from .learned_dropout import LearnedDropout
from .precomputed import PrecomputedLearnedDropout

__all__ = ["Dropout", "LearnedDropout", "PrecomputedLearnedDropout"]
