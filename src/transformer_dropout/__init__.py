"""See, control, learn and prove dropout and its rivals on transformers.

Users write ``import transformer_dropout as td``. Nothing but torch is loaded.
"""

from . import recipes
from .audit import audit
from .audit.contexts import disabled, mc_dropout
from .errors import InputError
from .layers import (
    AlphaDropout,
    ConcreteDropout,
    DropHead,
    DropKey,
    Dropout,
    DropPath,
    GaussianDropout,
    GaussianNoise,
    ImportanceDropout,
    LayerDrop,
    LearnedBlockDropout,
    LearnedDropout,
    PrecomputedLearnedDropout,
    Standout,
    TokenDropout,
)
from .recipe import Recipe, Rule
from .schedules import (
    Constant,
    Cosine,
    Curriculum,
    Early,
    Exponential,
    Feedback,
    Late,
    Linear,
    Piecewise,
    parse_schedule,
)
from .sites import Site, find_sites
from .surgery.regularize import Regularization, regularize_, set_rates
from .surgery.saved_recipe import load_recipe, load_regularized, save_recipe, save_regularized
from .surgery.speed_up import speed_up_
from .terms.losses import rdrop_loss, two_passes
from .terms.mixout import Mixout, mixout_
from .terms.neftune import neftune_, neftune_noise
from .terms.penalties import L1, L2, L2SP, ElasticNet, proximal_l1_
from .terms.weights import layerwise_lr_groups, set_weight_decay, weight_decay_groups

__version__ = "0.1.0"

__all__ = [
    "L1",
    "L2",
    "L2SP",
    "AlphaDropout",
    "ConcreteDropout",
    "Constant",
    "Cosine",
    "Curriculum",
    "DropHead",
    "DropKey",
    "DropPath",
    "Dropout",
    "Early",
    "ElasticNet",
    "Exponential",
    "Feedback",
    "GaussianDropout",
    "GaussianNoise",
    "ImportanceDropout",
    "InputError",
    "Late",
    "LayerDrop",
    "LearnedBlockDropout",
    "LearnedDropout",
    "Linear",
    "Mixout",
    "Piecewise",
    "PrecomputedLearnedDropout",
    "Recipe",
    "Regularization",
    "Rule",
    "Site",
    "Standout",
    "TokenDropout",
    "audit",
    "disabled",
    "find_sites",
    "layerwise_lr_groups",
    "load_recipe",
    "load_regularized",
    "mc_dropout",
    "mixout_",
    "neftune_",
    "neftune_noise",
    "parse_schedule",
    "proximal_l1_",
    "rdrop_loss",
    "recipes",
    "regularize_",
    "save_recipe",
    "save_regularized",
    "set_rates",
    "set_weight_decay",
    "speed_up_",
    "two_passes",
    "weight_decay_groups",
]
