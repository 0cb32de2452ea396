"""What a run config does to weights besides the gradient of its loss: penalties, decay over time, zeros."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.sharded import sum_of
from ..schedule_data import schedule_from_data
from ..terms.penalties import L1, L2, L2SP, ElasticNet, proximal_l1_
from ..terms.weights import decayed_groups, select_parameters, set_weight_decay
from .training_config import TrainingConfig


class WeightPenalties:
    """The penalties of a run config on the model's matrices, its weight decay, and its soft-thresholding.

    Args:
        model: the model that is trained, sharded or not.
        optimizer: from `make_optimizer`.
        config: which of them there are.
        fresh: names of the parameters that no pre-training made; they are not pulled anywhere.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfig,
        fresh: Collection[str] = (),
    ) -> None:
        self.optimizer = optimizer
        self.decay, self.shrinkage = config.schedule("weight_decay"), config.schedule("proximal_l1")
        self.terms: dict[str, L1 | L2SP] = {}
        # A weight of 0 from beginning to end costs nothing.
        if config.l1:
            self.terms["l1"] = L1(model, config.schedule("l1"))
        if config.l2:
            self.terms["l2"] = L2(model, config.schedule("l2"))
        if config.elastic_net is not None:
            weight = schedule_from_data(config.elastic_net.weight, "training.elastic_net.weight")
            self.terms["elastic_net"] = ElasticNet(model, weight, l1_ratio=config.elastic_net.l1_ratio)
        if config.l2_sp:
            drawn = [held.names[0] for held in select_parameters(model) if held.names[0] in fresh]
            self.terms["l2_sp"] = L2SP(model, config.schedule("l2_sp"), new=drawn)
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        """Move every weight, the decay and the threshold to their values at ``progress``."""
        for term in self.terms.values():
            term.set_progress(progress)
        self.strength = self.shrinkage(progress)
        set_weight_decay(self.optimizer, self.decay(progress))

    def penalty(self) -> Tensor:
        """Return the sum of the penalties, to be added to the loss once per step."""
        return torch.stack([term() for term in self.terms.values()]).sum()

    def shrink(self) -> None:
        """Set small weights to exactly 0, after the optimizer's step."""
        if self.strength:
            proximal_l1_(self.optimizer, self.strength)

    def metrics(self) -> dict[str, Any]:
        """Return each penalty, the weight decay, and the share of the decayed weights that are exactly 0."""
        weights = [weight.detach() for group in decayed_groups(self.optimizer) for weight in group["params"]]
        with torch.no_grad():
            zeros = sum_of((weight == 0).sum() for weight in weights) / sum(w.numel() for w in weights)
            penalties = {name: term().item() for name, term in self.terms.items()}
        decay = decayed_groups(self.optimizer)[0]["weight_decay"]
        return {"weight_penalties": penalties, "weight_decay": decay, "zeros": zeros.item()}
