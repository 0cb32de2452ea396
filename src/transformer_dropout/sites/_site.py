"""What a site is."""

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "embedding", "attention_weights", "attention_output", "mlp_hidden", "mlp_output", "block", "classifier"
]
Access = Literal["module", "rate", "output", "attention"]

KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A named place in a model.

    Attributes:
        path: the module's name in the model, as ``model.get_submodule`` takes it.
        kind: what the place is, in the words that recipes use.
        access: how it is reached: ``output`` hooks the module's output, ``attention`` replaces the
            function ``attend`` that mixes the values.
        block: the index of the block it lies in, None outside the blocks.
        n_blocks: how many blocks the model has.
        width: channels of the tensor there, None where the tensor has no channels (attention weights).
    """

    path: str
    kind: Kind
    access: Access
    block: int | None = None
    n_blocks: int = 0
    width: int | None = None

    @property
    def depth(self) -> float:
        """The place in the stack as a fraction: 0 before and in the first block, 1 in the last."""
        if self.block is None or self.n_blocks < 2:
            return 0.0
        return self.block / (self.n_blocks - 1)
