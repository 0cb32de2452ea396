"""See, control, learn and prove dropout and its rivals on transformers.

Users write ``import transformer_dropout as td``. Nothing but torch is loaded.
"""

from .errors import InputError
from .layers import Dropout, LearnedDropout, PrecomputedLearnedDropout
from .recipe import Recipe, Rule
from .regularize import Regularization, regularize_
from .schedules import Constant, Cosine, Exponential, Linear
from .sites import Site, find_sites

__version__ = "0.1.0"

__all__ = [
    "Constant",
    "Cosine",
    "Dropout",
    "Exponential",
    "InputError",
    "LearnedDropout",
    "Linear",
    "PrecomputedLearnedDropout",
    "Recipe",
    "Regularization",
    "Rule",
    "Site",
    "find_sites",
    "regularize_",
]
