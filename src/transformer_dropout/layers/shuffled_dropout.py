"""A control for LearnedDropout: each sequence is masked by what the gate computes from another one."""

import torch
from torch import Tensor

from .. import functional
from ..errors import InputError
from .learned_dropout import LearnedDropout


def shuffled_order(batch: int, training: bool, device: torch.device) -> Tensor:
    """Return, for each sequence, the other one that it is masked by.

    In training the batch is moved on by a random number of places, in evaluation by one.

    Shape:
        result: (batch,).
    """
    places = torch.arange(batch, device=device)
    if not training:
        return (places + 1) % batch
    return (places + torch.randint(1, batch, (1,), device=device)) % batch


class LearnedShuffledDropout(LearnedDropout):
    """``LearnedDropout`` whose masks belong to other sequences of the batch.

    Formula: ``y_b = X_b * mask(M_s(b))``, where ``s(b) != b`` is another sequence of the batch, drawn anew in
    each training forward and the next one in evaluation. A control: masks have the distribution of the
    learned ones, and know nothing of the sequence they act on.

    The arguments and the shape are those of ``LearnedDropout``, and so are the errors.

    Raises:
        InputError: for a batch of one sequence, in which there is no other.

    Paper: Yan 2024, "Learned Dropout", for the mask.
    """

    def gate(
        self,
        mask_input: Tensor,
        padding_mask: Tensor | None = None,
        past: functional.KeysAndValues | None = None,
    ) -> Tensor:
        if len(mask_input) < 2:
            raise InputError(
                "LearnedShuffledDropout masks each sequence by another one of its batch, and this batch has "
                "one; choose batches of two or more, for evaluation too."
            )
        order = shuffled_order(len(mask_input), self.training, mask_input.device)
        padding_mask = None if padding_mask is None else padding_mask[order]
        return super().gate(mask_input[order], padding_mask, past)
