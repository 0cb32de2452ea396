"""What a run learns from the part of its training split on which its weights never train."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..surgery.regularize import Regularization
from ..terms.held_out import CrossFittedGates, HeldOutGates
from ..terms.self_tuned import SelfTuned
from .processes import Processes
from .training_config import TrainingConfig


class HeldOut:
    """Gates that take their gradient, or rates that are tuned, by examples held out from them; or neither.

    Args:
        config: which of them there are.
        model, regularization: with learned masks, or with rates.
        seed: of the run.

    Raises:
        InputError: when the model has nothing that could learn so.
    """

    def __init__(
        self, config: TrainingConfig, model: nn.Module, regularization: Regularization, seed: int
    ) -> None:
        self.every = config.held_out_every
        self.gates: HeldOutGates | None = None
        if config.held_out or config.cross_fit:
            self.gates = CrossFittedGates(model) if config.cross_fit else HeldOutGates(model)
        self.tuned: SelfTuned | None = None
        if config.self_tuned is not None:
            self.every, step, delta = (getattr(config.self_tuned, key) for key in ("every", "step", "delta"))
            self.tuned = SelfTuned(regularization, step=step, delta=delta, seed=seed)

    def tune(self, step: int, training_loss: Callable[[], Tensor], held_out: Callable[[], Tensor]) -> None:
        """Move the rates, where they are tuned and a step is one of those at which they are."""
        if self.tuned is not None and step % self.every == 0:
            self.tuned.measure(training_loss, held_out)

    def backward(self, step: int, loss: Tensor, penalty: Tensor, held_out: Callable[[], Tensor]) -> None:
        """Add the gradients of a loss: all of them, or the weights' alone and held-out ones to the gates.

        Args:
            step: optimizer steps done; between those at which gates learn, they get no gradient.
            loss: of examples that are trained on, with every penalty but that of the layers.
            penalty: of the layers.
            held_out: computes the loss of held-out examples, with the layers' penalty.
        """
        if self.gates is None:
            (loss + penalty).backward()
        elif step % self.every == 0:
            self.gates.backward(loss, held_out)
        else:
            loss.backward(inputs=self.gates.weights)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return what a checkpoint holds in tensors."""
        return {} if self.tuned is None else {"self_tuned": {"signs": self.tuned.state_dict()["signs"]}}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside them."""
        if self.tuned is None:
            return {}
        return {"self_tuned": {key: self.tuned.state_dict()[key] for key in ("rates", "size")}}

    def load(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        if self.tuned is not None:
            self.tuned.load_state_dict(state["self_tuned"] | tensors["self_tuned"])


def refuse_several_processes(config: TrainingConfig, processes: Processes) -> None:
    """Refuse what only one process can do.

    Raises:
        InputError: for gates or rates that learn from held-out examples, with several processes.
    """
    if processes.size > 1 and config.trained_apart:
        key = config.trained_apart[0]
        raise InputError(f"training.{key} trains in one process; start it without torchrun.")
