"""The loss of one batch under an arm."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from ...surgery.regularize import Regularization
from ...terms.losses import rdrop_loss, two_passes
from ...terms.penalties import L2SP
from .pretrained import Classifier


class Objective:
    """Cross-entropy with what an arm adds to it.

    Args:
        classifier: before it is regularized, so that the pull is to pre-trained weights alone.
        terms: by name, the weights of terms of the loss.
    """

    def __init__(self, classifier: Classifier, terms: Mapping[str, float]) -> None:
        self.model = classifier.model
        self.rdrop = terms.get("RDrop")
        self.pull = None
        if "L2SP" in terms:
            matrices = [name for name, value in self.model.named_parameters() if value.ndim > 1]
            new = [name for name in matrices if name in classifier.new]
            self.pull = L2SP(self.model, terms["L2SP"], new=new)

    def loss(self, inputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """Return the loss of one training forward, or two under R-Drop, a mean over sentences.

        R-Drop's loss is halved: it has two cross-entropies, and the gradients of all arms are clipped alike.
        """
        if self.rdrop is None:
            return F.cross_entropy(self.model(**inputs).logits.float(), labels)
        first, second = two_passes(self.model, inputs, doubled=True)
        return rdrop_loss(first.float(), second.float(), labels, self.rdrop) / 2

    def penalty(self, regularization: Regularization) -> Tensor:
        """Return what is added to the loss; call it once after each training forward."""
        layers = regularization.penalty()
        return layers if self.pull is None else layers + self.pull()
