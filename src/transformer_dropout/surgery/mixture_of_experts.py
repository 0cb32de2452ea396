"""A top-k mixture of experts in place of each MLP: as many parameters act on a token, many more are there."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..schedules import Schedule, as_schedule
from ._feed_forward import feed_forward_parts, layer_around, put_feed_forward


def load_balancing(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """Return how unevenly tokens go to experts: 1 when evenly, up to the number of experts.

    Formula: ``E sum_e f_e P_e`` with ``f_e`` the share of the choices that fall on expert e and ``P_e`` its
    mean probability.

    Shape:
        probabilities: (tokens, experts); chosen: (tokens, k), the experts' indices.

    Paper: Fedus, Zoph and Shazeer 2022, "Switch transformers".
    """
    experts = probabilities.shape[-1]
    shares = F.one_hot(chosen, experts).sum(dim=(0, 1)).to(probabilities.dtype) / chosen.numel()
    return experts * (shares * probabilities.mean(dim=0)).sum()


class MixtureOfExperts(nn.Module):
    """Send each token to the k most probable of some MLPs.

    Formula, with ``r = softmax(W_r x)`` and T the k largest::

        y = sum_{e in T} r_e W2_e gelu(W1_e x)

    A training forward leaves `load_balancing` in ``balance``.

    Args:
        width: channels of the input and of the result.
        hidden: hidden units of one expert.
        experts: how many there are.
        top_k: how many of them act on a token.

    Shape:
        x: (..., width), and the result; the hidden units of all experts: (tokens * top_k, hidden).

    Papers: Shazeer et al. 2017, "Outrageously large neural networks: the sparsely-gated mixture-of-experts
    layer"; Fedus, Zoph and Shazeer 2022, "Switch transformers", for the weights of the sum.
    """

    def __init__(self, width: int, hidden: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(width, experts, bias=False)
        self.expand = nn.Parameter(torch.empty(experts, hidden, width))
        self.contract = nn.Parameter(torch.empty(experts, width, hidden))
        # A module that runs once a forward, so that layers at mlp_hidden act on the hidden units of all.
        self.activation: nn.Module = nn.GELU()
        for weight in (self.router.weight, self.expand, self.contract):
            nn.init.normal_(weight, std=0.02)
        self.balance: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        probabilities = self.router(rows).softmax(dim=-1, dtype=torch.float32)
        shares, chosen = probabilities.topk(self.top_k, dim=-1)
        if self.training:
            self.balance = load_balancing(probabilities, chosen)
        meetings = [(chosen == expert).nonzero(as_tuple=True) for expert in range(len(self.expand))]
        entered = [F.linear(rows[tokens], w) for (tokens, _), w in zip(meetings, self.expand, strict=True)]
        hidden = self.activation(torch.cat(entered)).split([len(part) for part in entered])
        y = torch.zeros_like(rows)
        for (tokens, place), own, weight in zip(meetings, hidden, self.contract, strict=True):
            out = F.linear(own, weight)
            y = y.index_add(0, tokens, out * shares[tokens, place, None].to(out.dtype))
        return y.view(x.shape)

    def __getstate__(self) -> dict:
        # It is part of an autograd graph, which can be neither copied nor pickled.
        return super().__getstate__() | {"balance": None}


class Mixtures:
    """The handle that `mixture_of_experts_` returns; made anew, it holds the mixtures that a model has.

    Attributes:
        placed: each mixture by its path.
        weight: of the load-balancing loss, as last set.
    """

    def __init__(self, model: nn.Module, weight: Schedule) -> None:
        self.model, self.schedule = model, weight
        there = {name: part for name, part in model.named_modules() if isinstance(part, MixtureOfExperts)}
        self.placed: dict[str, MixtureOfExperts] = there
        self._ways_back: list[Callable[[], None]] = []
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        """Move the weight to its value at ``progress``, a fraction in [0, 1]."""
        self.weight = self.schedule(progress)

    def place(self, path: str, mixture: MixtureOfExperts) -> None:
        """Put a mixture in place of the MLP at a path, or of a layer's part that is called so."""
        layer = layer_around(self.model, path)
        before = layer or self.model.get_submodule(path)
        reference = next(before.parameters())
        self.placed[path] = mixture.to(reference.device, reference.dtype).train(before.training)
        if layer is None:
            self.model.set_submodule(path, mixture)
            self._ways_back.append(partial(self.model.set_submodule, path, before))
        else:
            self._ways_back.append(put_feed_forward(self.model, layer, mixture))

    def penalty(self) -> Tensor:
        """Return ``weight * mean over mixtures of the load-balancing loss``; once after a training forward.

        Raises:
            InputError: when no training forward has run since the last call.
        """
        found = [mixture.balance for mixture in self.placed.values()]
        for mixture in self.placed.values():
            mixture.balance = None
        balances = [balance for balance in found if balance is not None]
        if len(balances) < len(found):
            raise InputError(
                "The load-balancing loss was read before a forward in training mode; call model.train() and "
                "run the model first, and read it once after each forward."
            )
        return self.weight * torch.stack(balances).mean()

    def remove(self) -> None:
        """Put back what was replaced."""
        while self._ways_back:
            self._ways_back.pop()()


def mixture_of_experts_(
    model: nn.Module,
    select: str | Iterable[str] = "*.mlp",
    *,
    experts: int = 4,
    top_k: int = 1,
    weight: float | Schedule = 0.01,
) -> Mixtures:
    """Replace MLPs by mixtures of experts with as many active parameters, in place; see `MixtureOfExperts`.

    An expert has ``hidden / top_k`` hidden units, where the MLP it replaces has ``hidden``, so that a token
    meets as many weights as before, and the router's. All are drawn anew. Call it before `regularize_`, which
    then finds the output of a mixture as it found the MLP's.

    ``nn.TransformerEncoderLayer`` and ``nn.TransformerDecoderLayer`` have their MLP in themselves: it goes by
    the path of the layer with ``.mlp`` behind it, and a mixture becomes the layer's child of that name.

    Args:
        model: with MLPs of two linear layers, from width to hidden units and back.
        select: Unix patterns of their paths.
        experts: how many an MLP becomes.
        top_k: how many act on a token.
        weight: of the load-balancing loss; a schedule moves with ``set_progress``.

    Raises:
        InputError: for a pattern that matches no module, one that is no such MLP, or numbers that do not fit.

    Papers: as of `MixtureOfExperts`.
    """
    if not 1 <= top_k <= experts:
        raise InputError(f"top_k is {top_k} of {experts} experts; write a number from 1 to {experts}.")
    patterns = [select] if isinstance(select, str) else list(select)
    there = [*(name for name, _ in model.named_modules()), *feed_forward_parts(model)]
    paths = [name for name in there if any(fnmatchcase(name, p) for p in patterns)]
    if not paths:
        raise InputError(f"The pattern {', '.join(patterns)} matches no module; name the paths of the MLPs.")
    handle = Mixtures(model, as_schedule(weight))
    shapes = {path: shape_of(model, path, top_k) for path in paths}
    for path, (width, hidden) in shapes.items():
        handle.place(path, MixtureOfExperts(width, hidden // top_k, experts, top_k))
    return handle


def shape_of(model: nn.Module, path: str, top_k: int) -> tuple[int, int]:
    """Return the width and the hidden units of an MLP.

    Raises:
        InputError: when the module at the path is none, or its hidden units are not divided by ``top_k``.
    """
    layer = layer_around(model, path)
    parts = [model.get_submodule(path)] if layer is None else [layer.linear1, layer.linear2]
    linears = [part for module in parts for part in module.modules() if isinstance(part, nn.Linear)]
    shapes = [tuple(part.weight.shape) for part in linears]
    others = {p for module in parts for p in module.parameters()}
    others -= {p for part in linears for p in part.parameters()}
    if len(shapes) != 2 or shapes[0] != shapes[1][::-1] or others:
        raise InputError(
            f"{path} is no MLP of two linear layers from width to hidden units and back; select others."
        )
    hidden, width = shapes[0]
    if hidden % top_k:
        raise InputError(f"The {hidden} hidden units of {path} are not divided by top_k {top_k}.")
    return width, hidden
