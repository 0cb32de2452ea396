"""Rates that are tuned within one run, by what a step under them does to held-out data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..layers import RateLayer

# The rates stay between these: at 0 and 1 a logit has no value.
LEAST, MOST = 0.005, 0.9
# Share of the running size of the measured differences that one measurement keeps.
MOMENTUM = 0.9


class Regularized(Protocol):
    """What `regularize_` returns: the layers at their sites, and a way to give them other rates."""

    model: nn.Module
    placed: Any

    def update(self, rates: Mapping[str, float]) -> None:
        """Give other rates to the layers at some sites."""
        ...


def alignment(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the cosine of the angle between two gradients: how far a step along one descends the other."""
    products = torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()
    sizes = [torch.stack([g.square().sum() for g in each]).sum().sqrt() for each in (first, second)]
    return products / (sizes[0] * sizes[1]).clamp_min(torch.finfo(torch.float32).tiny)


class SelfTuned:
    """Moves dropout rates to where training steps help held-out data most, while the model trains.

    Formula, for the rates of all kinds of sites at once, in logits ``l`` with random signs ``s``::

        a(p) = cos(gradient of the training loss under rates p, gradient of the held-out loss without noise)
        l <- l + step * s * (a(p(l + delta s)) - a(p(l - delta s))) / (running size of that difference)

    A small gradient step lowers the held-out loss by its length times ``a``; the rates climb it by
    simultaneous perturbation. Both training gradients have the same batch and the same random numbers, so
    that they differ by the rates alone. It needs nothing of a layer but a rate.
    It looks one step ahead, not to the end of the run, and so prefers small rates early: start from high
    ones. A call costs three forwards and backwards: at every tenth step, 1.3 of the run.

    ::

        tuned = td.SelfTuned(regularization)
        for step, (batch, held_out) in enumerate(...):
            regularization.set_progress(step / steps)
            if step % 10 == 0:
                tuned.measure(lambda: loss(batch), lambda: loss(held_out))

    Args:
        regularization: the handle of `regularize_`; the rates of its recipe are where it starts.
        step: how far a logit moves in one call when the measured difference has its usual size.
        delta: how far a logit is moved to measure.
        seed: of the signs.

    Attributes:
        rates: by kind of site, the probability of dropping now.

    Raises:
        InputError: when no placed layer has a rate, or a number is not above 0.

    Papers: Luketina et al. 2016, "Scalable gradient-based tuning of continuous regularization
    hyperparameters", for one step ahead; Spall 1992, "Multivariate stochastic approximation using a
    simultaneous perturbation gradient approximation"; MacKay et al. 2019, "Self-tuning networks: bilevel
    optimization of hyperparameters using structured best-response functions", for the aim.
    """

    def __init__(
        self, regularization: Regularized, *, step: float = 0.1, delta: float = 0.5, seed: int = 0
    ) -> None:
        for name, value in (("step", step), ("delta", delta)):
            if not value > 0:
                raise InputError(f"{name} is {value}; write a number above 0.")
        self.regularization, self.step, self.delta = regularization, step, delta
        starts: dict[str, list[float]] = {}
        for placed in regularization.placed:
            if isinstance(placed.layer, RateLayer):
                starts.setdefault(placed.site.kind, []).append(placed.layer.p)
        if not starts:
            raise InputError("No layer of this regularization has a rate that could be tuned.")
        self.rates = {kind: sum(rates) / len(rates) for kind, rates in starts.items()}
        self.sign_generator = torch.Generator().manual_seed(seed)
        self._size: float | None = None
        self._set(self.logits())

    def logits(self) -> Tensor:
        """Return the logits of the rates.

        Shape:
            result: (kinds,).
        """
        return torch.tensor(list(self.rates.values()), dtype=torch.float64).clamp(LEAST, MOST).logit()

    def _set(self, logits: Tensor) -> None:
        values = logits.sigmoid().clamp(LEAST, MOST).tolist()
        self.regularization.update(dict(zip(self.rates, values, strict=True)))

    def measure(self, training_loss: Callable[[], Tensor], held_out_loss: Callable[[], Tensor]) -> None:
        """Move the rates by what they do now; gradients, modes and random numbers stay as they are.

        Args:
            training_loss: computes the loss of a training batch with the model.
            held_out_loss: the same of a batch that the weights are not trained on.
        """
        model = self.regularization.model
        weights = [p for p in model.parameters() if p.requires_grad]
        training, logits = model.training, self.logits()
        signs = torch.randint(2, logits.shape, generator=self.sign_generator).double() * 2 - 1

        def gradient(loss: Callable[[], Tensor]) -> list[Tensor]:
            with torch.random.fork_rng():
                found = torch.autograd.grad(loss(), weights, allow_unused=True)
            return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]

        try:
            held_out = gradient(in_mode(model, False, held_out_loss))
            aligned = []
            for side in (1, -1):
                self._set(logits + side * self.delta * signs)
                aligned.append(alignment(gradient(in_mode(model, True, training_loss)), held_out).item())
            self.move(logits, signs, aligned[0] - aligned[1])
        finally:
            model.train(training)
            self._set(self.logits())

    def move(self, logits: Tensor, signs: Tensor, difference: float) -> None:
        """Move the rates along the signs, by a measured difference in units of its usual size."""
        size = abs(difference) if self._size is None else self._size
        self._size = MOMENTUM * size + (1 - MOMENTUM) * abs(difference)
        if self._size > 0:
            # A single large difference is more likely noise than a reason to go far.
            share = max(-2.0, min(2.0, difference / self._size))
            moved = (logits + self.step * share * signs).sigmoid().clamp(LEAST, MOST).tolist()
            self.rates = dict(zip(self.rates, moved, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds: the rates, their usual differences, the generator of the signs."""
        return {"rates": dict(self.rates), "size": self._size, "signs": self.sign_generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            InputError: when it was taken with other kinds of sites.
        """
        if set(state.get("rates", ())) != set(self.rates):
            raise InputError(
                f"The state has rates for other kinds of sites; those here are {', '.join(self.rates)}."
            )
        self.rates, self._size = dict(state["rates"]), state["size"]
        self.sign_generator.set_state(state["signs"])
        self._set(self.logits())


def in_mode(model: nn.Module, training: bool, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a function that computes a loss in training or in evaluation mode."""

    def run() -> Tensor:
        model.train(training)
        return loss()

    return run
