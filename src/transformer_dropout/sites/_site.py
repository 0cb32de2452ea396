"""What a site is."""

from dataclasses import dataclass
from typing import Literal, get_args

# What any model may have; an adapter adds a kind of its own.
ModelKind = Literal[
    "embedding", "attention_weights", "attention_output", "mlp_hidden", "mlp_output", "block", "classifier"
]
# What few have: the input of a model that is nothing but an MLP, an adapter's dropout, and randomness that no
# layer can take the place of.
Kind = ModelKind | Literal["input", "lora", "other"]
Access = Literal["module", "rate", "output", "input", "gate", "block", "attention", "none"]
Found = Literal["run", "table", "code"]

KINDS: tuple[str, ...] = get_args(ModelKind)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A named place in a model.

    Attributes:
        path: the module's name in the model, as ``model.get_submodule`` takes it.
        kind: what the place is, in the words that recipes use.
        access: how it is reached. ``module`` replaces the module, ``output`` and ``input`` hook it,
            ``block`` hooks a residual block and acts on what it adds, ``gate`` follows a method that
            computes the hidden units of experts, ``attention`` goes through the function that mixes the
            values, ``rate`` sets a number that the model's own code reads, ``none`` cannot be reached.
        block: the index of the block it lies in, None outside the blocks.
        n_blocks: how many blocks the model has.
        width: channels of the tensor there, None where the tensor has no channels (attention weights).
        rate: path of a float of the model's own that drops at this place: a module's path and an attribute,
            or, for a number in its code, the file, line and column of the call: ``block.0.model:31:15=1/10``.
        owner: path of the module that is called with the attention mask and the cache of these tokens; None
            where there are no such.
        causal: whether a token at this place sees only the tokens before it.
        batch_first: whether the tensor's first dimension counts the samples, not the tokens.
        silences: paths of further rates at which the model itself drops at this place.
        streams: of a block, the places of the tensors that it adds to, among those it is given and returns.
        found: how the place is known: a ``run`` showed it, a ``table`` of the family names it, or the
            model's ``code`` was read.
    """

    path: str
    kind: Kind
    access: Access
    block: int | None = None
    n_blocks: int = 0
    width: int | None = None
    rate: str | None = None
    owner: str | None = None
    causal: bool = True
    batch_first: bool = True
    silences: tuple[str, ...] = ()
    streams: tuple[int, ...] = (0,)
    found: Found = "code"

    @property
    def name(self) -> str:
        """Path and kind, which together name a site."""
        return f"{self.path}/{self.kind}"

    @property
    def depth(self) -> float:
        """The place in the stack as a fraction: 0 before and in the first block, 1 in the last."""
        if self.block is None or self.n_blocks < 2:
            return 0.0
        return self.block / (self.n_blocks - 1)
