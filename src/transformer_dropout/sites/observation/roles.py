"""What a tensor is in a transformer, followed from function to function: names of modules are not asked."""

import re
from collections.abc import Sequence
from typing import Literal

Role = Literal[
    "constant",  # made of nothing, as by torch.ones
    "input",  # what the model was given
    "embedded",  # of an embedding or of convolutions over the input
    "lifted",  # a linear function of the two before
    "projected",  # a linear function of the stream
    "scores",  # a product of two projections
    "weights",  # their softmax
    "mixed",  # what attention brought together, and linear functions of it
    "hidden",  # behind an activation, or in a recurrence
    "transformed",  # a linear function of what is hidden: the MLP's output
    "stream",  # a sum that a branch was added to
]

# Of several operands the first that is here decides what a product of elements is.
ORDER: tuple[Role, ...] = (
    *("mixed", "transformed", "hidden", "weights", "scores"),
    *("projected", "stream", "lifted", "embedded", "input"),
)
EARLY = frozenset({"input", "embedded", "lifted"})
BRANCHES = frozenset({"mixed", "transformed", "hidden", "projected"})

ATTENTION = re.compile(r".*attention.*")
CONVOLUTION = re.compile(r"(_?conv\w*)")
PRODUCT = re.compile(
    r"_?conv\w*|linear|(__r?)?matmul(__)?|b?mm|addmm|baddbmm|addbmm|einsum|_?grouped_mm|bilinear"
)
SOFTMAX = re.compile(r"_?softmax|sparsemax|entmax")
# Functions of a whole sequence; there are cells too, and quantised ones.
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
ACTIVATION = re.compile(
    r"(relu6?|gelu|silu|mish|tanh|sigmoid|elu|selu|celu|leaky_relu|prelu|rrelu|hardswish|hardsigmoid|hardtanh"
    r"|softplus|softsign|logsigmoid|log_sigmoid|glu|erf)_?"
)
# Deformable attention takes values from other places of a grid.
SAMPLED = "grid_sample"
SUM = re.compile(r"_*(r|i)?(add|sub)_*")
MADE = re.compile(r"((new_)?(zeros|ones|full|empty|tensor)|arange|eye|linspace)(_like|_strided)?")
CHOICE = re.compile(r"topk|arg(max|min|sort)|sort|nonzero|one_hot|bincount|histc|unique\w*")


def role_after(name: str, inputs: Sequence[Role]) -> Role | None:
    """Return what the result of a function is, None where nothing tells.

    Args:
        name: of the function.
        inputs: what its operands are, those that are known.
    """
    if MADE.fullmatch(name):
        return "constant"
    known = [role for role in inputs if role != "constant"]
    if ATTENTION.fullmatch(name) and known:
        return "mixed"
    if name in ("embedding", "embedding_bag"):
        return "embedded"
    if not known:
        return "constant" if inputs else None
    if CHOICE.fullmatch(name):
        return None
    if is_recurrent(name):
        return "hidden"
    if name == SAMPLED and known[0] in ("lifted", "projected"):
        return "mixed"
    if SOFTMAX.fullmatch(name):
        return "weights" if "scores" in known else first_of(known)
    if PRODUCT.fullmatch(name):
        return after_product(known, CONVOLUTION.fullmatch(name) is not None)
    if ACTIVATION.fullmatch(name):
        return after_activation(first_of(known))
    if SUM.fullmatch(name) and len(known) > 1:
        return after_sum(known)
    return first_of(known)


def is_recurrent(name: str) -> bool:
    """Return whether a function carries hidden states from token to token."""
    return name.removeprefix("quantized_").removesuffix("_cell") in RECURRENT


def first_of(known: Sequence[Role]) -> Role:
    """Return the role that decides among several."""
    return next(role for role in ORDER if role in known)


def after_product(known: Sequence[Role], convolves: bool) -> Role:
    """Return what a matrix product is: of two activations, or of one and a weight."""
    if len(known) > 1:
        return "mixed" if "weights" in known or "mixed" in known else "scores"
    role = known[0]
    if role in EARLY:
        return "embedded" if convolves else "lifted"
    if role in ("hidden", "transformed"):
        return "transformed"
    # Linear attention multiplies without a softmax.
    return "mixed" if role in ("mixed", "weights", "scores") else "projected"


def after_activation(role: Role) -> Role:
    """Return what an activation makes of a tensor; in a stem of convolutions it stays an embedding."""
    if role in ("embedded", "input"):
        return role
    return "weights" if role in ("scores", "weights") else "hidden"


def after_sum(known: Sequence[Role]) -> Role:
    """Return what a sum of activations is: a residual one, or one of parts of the same kind."""
    if len(set(known)) == 1:
        return known[0]
    for role in ("weights", "scores"):
        if role in known:
            return role
    return "embedded" if EARLY.issuperset(known) else "stream"
