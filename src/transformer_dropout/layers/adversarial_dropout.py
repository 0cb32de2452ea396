"""A learned mask that is trained against the model, under a pull back to plain dropout."""

from torch import Tensor

from .. import functional
from .anchored_dropout import AnchoredDropout


def reversed_gradient(x: Tensor) -> Tensor:
    """Return ``x``, exactly, with its gradient times -1.

    Paper: Ganin and Lempitsky 2015, "Unsupervised domain adaptation by backpropagation".
    """
    return 2 * x.detach() - x


class AdversarialDropout(AnchoredDropout):
    """``AnchoredDropout`` whose gate climbs the loss that the model descends; identity in evaluation.

    Formula: that of ``AnchoredDropout`` in training, with the loss's gradient to M times -1. The penalty's is
    not reversed: ``KL(Bernoulli(M) || Bernoulli(1 - p))`` keeps the masks near dropout's, and the smaller its
    weight, the stronger the adversary.

    Meant as the second of two views, so that the gate climbs their divergence alone and not the loss of the
    labels: see `anchored_passes` and `adversarial_dropout_loss`. The paper searches, for each batch, the mask
    within a distance of a random one that maximises the divergence; here a gate learns to.

    The arguments, the shape and the errors are those of ``AnchoredDropout``, but for ``eval_mask``.

    Paper: Park et al. 2018, "Adversarial dropout for supervised and semi-supervised learning".
    """

    silent_in_evaluation = True

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        anchor_p: float = 0.1,
        causal: bool = True,
        clip: float = 10.0,
        lr_scale: float = 1.0,
        detach: bool = True,
    ) -> None:
        super().__init__(
            width, heads, anchor_p=anchor_p, causal=causal, clip=clip, lr_scale=lr_scale, detach=detach
        )

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        past: functional.KeysAndValues | None = None,
    ) -> Tensor:
        return super().forward(x, padding_mask, past) if self.training else x

    def mask(self, keep_probability: Tensor) -> Tensor:
        return super().mask(reversed_gradient(keep_probability))
