"""What makes training noisy and rewards agreement under noise: R-Drop, NEFTune, mixout.

Label smoothing is torch's own: ``torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)``.
"""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import functional
from .errors import InputError, did_you_mean
from .schedules import Schedule, as_schedule
from .weights import Patterns, check_not_negative, select_parameters, starting_values, value_at


def rdrop_loss(
    logits1: Tensor, logits2: Tensor, labels: Tensor, weight: float, *, ignore_index: int = -100
) -> Tensor:
    """Return the cross-entropy of two forwards plus their symmetric divergence.

    Formula: ``CE(logits1, labels) + CE(logits2, labels) + weight * (KL(P1 || P2) + KL(P2 || P1)) / 2``,
    each a mean over examples, or over tokens. The authors' code halves the cross-entropies instead: its
    weight is half of this one.

    Args:
        logits1, logits2: of two forwards of the same inputs under independent noise; see `two_passes`.
        labels: the true classes.
        weight: strength of the divergence; the paper's alpha, 1 to 5 there.
        ignore_index: label of what counts neither in the cross-entropy nor in the divergence.

    Shape:
        logits: (..., classes); labels: (...); result: scalar, in float32 at least.

    Raises:
        InputError: when the shapes do not fit.

    Paper: Liang et al. 2021, "R-Drop: regularized dropout for neural networks".
    """
    if logits1.shape != logits2.shape or logits1.shape[:-1] != labels.shape:
        raise InputError(
            f"rdrop_loss got logits of shapes {tuple(logits1.shape)} and {tuple(logits2.shape)} and labels "
            f"of shape {tuple(labels.shape)}; it needs (..., classes) twice and (...)."
        )
    dtype = torch.promote_types(logits1.dtype, torch.float32)
    # Finite even where a class is masked with -inf, whose 0 * inf would be NaN.
    log1, log2 = (
        torch.log_softmax(logits, dim=-1, dtype=dtype).clamp_min(torch.finfo(dtype).min)
        for logits in (logits1, logits2)
    )
    flat = labels.reshape(-1)
    cross_entropy1, cross_entropy2 = (
        F.nll_loss(logs.reshape(flat.numel(), -1), flat, ignore_index=ignore_index) for logs in (log1, log2)
    )
    # KL(P1 || P2) + KL(P2 || P1) in one sum.
    divergence = ((log1.exp() - log2.exp()) * (log1 - log2)).sum(dim=-1)
    counted = labels != ignore_index
    mean_divergence = torch.where(counted, divergence, 0.0).sum() / counted.sum()
    return cross_entropy1 + cross_entropy2 + weight * mean_divergence / 2


def two_passes(
    model: nn.Module, inputs: Tensor | Mapping[str, Any], *, doubled: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the logits of two forwards of the same inputs under independent noise, for `rdrop_loss`.

    Args:
        model: returns logits, or something with ``.logits``.
        inputs: one tensor, or keyword arguments, best without labels: the model's own loss is not used.
        doubled: whether to make one forward of the batch twice over, which is what the paper does and is
            faster for small batches. Noise that a whole batch shares, such as a dropped layer or mixed
            weights, is then the same in both halves; layer penalties see both halves, and otherwise only
            the second forward.

    Raises:
        InputError: when ``doubled`` and the inputs' first dimensions differ.
    """
    arguments, keywords = ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})
    if not doubled:
        return logits_of(model(*arguments, **keywords)), logits_of(model(*arguments, **keywords))
    tensors = [v for v in (*arguments, *keywords.values()) if isinstance(v, Tensor) and v.ndim]
    sizes = {tensor.shape[0] for tensor in tensors}
    if len(sizes) != 1:
        raise InputError(
            f"The inputs have {sorted(sizes)} as first dimensions, so it is not clear what the batch is; use "
            "two_passes(..., doubled=False)."
        )

    def twice(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim else value

    output = model(*map(twice, arguments), **{name: twice(value) for name, value in keywords.items()})
    first, second = logits_of(output).chunk(2)
    return first, second


def logits_of(output: Any) -> Tensor:
    """Return a model's output, or its ``.logits``."""
    return output if isinstance(output, Tensor) else output.logits


def neftune_noise(embeddings: Tensor, alpha: float | Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Add uniform noise whose size falls with a text's length, and none to padding.

    Formula: ``x + alpha / sqrt(L d) * u``, ``u ~ U(-1, 1)`` for each element, with L the text's tokens and d
    the width, so that the noise of a text has the expected norm ``alpha / sqrt(3)``.

    Args:
        embeddings: the embedded tokens.
        alpha: strength; 5, 10 and 15 in the paper.
        attention_mask: 1 or true where a token is real; None when all are.

    Shape:
        embeddings: (batch, tokens, width); attention_mask: (batch, tokens).

    Paper: Jain et al. 2024, "NEFTune: noisy embeddings improve instruction finetuning".
    """
    tokens, width = embeddings.shape[-2:]
    noise = torch.rand_like(embeddings, dtype=torch.float32) * 2 - 1
    if attention_mask is None:
        return embeddings + (noise * (alpha / (tokens * width) ** 0.5)).to(embeddings.dtype)
    real = attention_mask.to(noise.dtype)[..., None]
    length = real.sum(dim=-2, keepdim=True).clamp_min(1)
    return embeddings + (noise * real * (alpha / (length * width).sqrt())).to(embeddings.dtype)


class NoiseHandle:
    """Steers noise that hooks make in training, and takes it out again.

    Args:
        schedule: the strength over training.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._hooks: list[RemovableHandle] = []

    def set_progress(self, progress: float) -> None:
        """Move the strength to its value at ``progress``, a fraction in [0, 1]."""
        self._set(value_at(self.schedule, progress))

    def _set(self, value: float) -> None:
        raise NotImplementedError

    def remove(self) -> None:
        """Take the noise out; the model then computes what it would without, to the bit.

        Raises:
            InputError: when it was removed already.
        """
        if not self._hooks:
            raise InputError("This was removed already; call the function that made the handle again.")
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class Neftune(NoiseHandle):
    """The handle that `neftune_` returns.

    Attributes:
        alpha: the strength, as last set.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        # What the running modules that take a mask were given, the innermost last.
        self._masks: list[Tensor | None] = []
        # The same number as alpha, for compiled graphs: one serves every value.
        self._alpha = torch.tensor(0.0)
        self.set_progress(0.0)

    def _set(self, value: float) -> None:
        check_not_negative("alpha", value)
        self.alpha = value
        self._alpha.fill_(value)

    def place(self, model: nn.Module, embedding: nn.Module) -> None:
        """Hook an embedding, the modules tied to it, and those around them that are given the mask."""
        weight = getattr(embedding, "weight", None)
        # Encoder and decoder may call modules of their own with its weight, and never the shared one itself.
        tied = {m for m in model.modules() if m is embedding or is_embedding_of(m, weight)}
        for module in model.modules():
            parameters = list(inspect.signature(module.forward).parameters)
            if "attention_mask" in parameters and any(part in tied for part in module.modules()):
                enter = partial(self._enter, parameters.index("attention_mask"))
                self._hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                self._hooks.append(module.register_forward_hook(self._leave, always_call=True))
        self._hooks += [module.register_forward_hook(self._add_noise) for module in tied]

    def _enter(self, index: int, module: nn.Module, arguments: tuple, keywords: dict) -> None:
        positional = arguments[index] if index < len(arguments) else None
        self._masks.append(keywords.get("attention_mask", positional))

    def _leave(self, module: nn.Module, arguments: tuple, output: Any) -> None:
        # Empty when another hook failed before ours entered.
        if self._masks:
            self._masks.pop()

    def _add_noise(self, module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        if not module.training:
            return output
        mask = self._masks[-1] if self._masks else None
        # A mask in any other form says nothing about single tokens.
        fits = isinstance(mask, Tensor) and mask.shape == output.shape[:-1]
        alpha = self._alpha if torch.compiler.is_compiling() else self.alpha
        return neftune_noise(output, alpha, mask if fits else None)


def is_embedding_of(module: nn.Module, weight: Any) -> bool:
    """Say whether a module is an embedding with this very weight."""
    return isinstance(module, nn.Embedding) and module.weight is weight


def neftune_(model: nn.Module, alpha: float | Schedule, *, embedding: str | None = None) -> Neftune:
    """Let a model train with noise on its input embeddings, in place; see `neftune_noise`.

    Training only. Padding is known from the ``attention_mask`` of shape (batch, tokens) that the model around
    the embedding is given; without one all tokens count. Inputs passed as ``inputs_embeds`` get no noise.

    Args:
        model: the model; ``state_dict`` stays as it is.
        alpha: strength; a schedule moves with ``set_progress``.
        embedding: path of the embedding; None for what ``model.get_input_embeddings()`` returns, or else the
            only ``nn.Embedding``.

    Raises:
        InputError: for a negative alpha, or when the embedding is not there or not clear.

    Paper: Jain et al. 2024, "NEFTune: noisy embeddings improve instruction finetuning".
    """
    handle = Neftune(as_schedule(alpha))
    handle.place(model, input_embedding(model, embedding))
    return handle


def input_embedding(model: nn.Module, path: str | None) -> nn.Module:
    """Return the module at a path, or the one that embeds a model's tokens.

    Raises:
        InputError: when there is none, or more than one could be meant.
    """
    embeddings = {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    if path is not None:
        modules = dict(model.named_modules())
        if path not in modules:
            raise InputError(f"embedding is {path!r}, which is no module.{did_you_mean(path, embeddings)}")
        return modules[path]
    getter = getattr(model, "get_input_embeddings", None)
    found = getter() if callable(getter) else None
    if isinstance(found, nn.Module):
        return found
    if len(embeddings) != 1:
        raise InputError(
            "The input embedding is not clear; name it with embedding='PATH', one of: "
            f"{', '.join(embeddings) or 'none is an nn.Embedding'}."
        )
    return next(iter(embeddings.values()))


def mixout(weight: Tensor, pretrained: Tensor, p: float | Tensor) -> Tensor:
    """Replace each element by its pre-trained value with probability ``p``, and keep the expectation.

    Formula: ``(m u + (1 - m) w - p u) / (1 - p)``, ``m ~ Bernoulli(p)``, which equals
    ``u + dropout(w - u, p)``; ``p = 1`` gives ``u``.

    Args:
        weight: the current weight ``w``.
        pretrained: the pre-trained weight ``u``, of the same shape.
        p: probability of mixing in.

    Paper: Lee, Cho and Kang 2020, "Mixout: effective regularization to finetune large-scale pretrained
    language models".
    """
    return pretrained + functional.dropout(weight - pretrained, p)


class MixedWeight:
    """The two hooks that put a mixed weight in place of a parameter while its module runs in training.

    Hooks and not a parametrization, so that parameters keep their names, identity and tying.
    """

    def __init__(self, path: str, name: str, pretrained: Tensor) -> None:
        self.path, self.name, self.pretrained = path, name, pretrained
        self.p, self.rate = 0.0, torch.tensor(0.0, device=pretrained.device)
        self.plain: nn.Parameter | None = None
        self.reached = False

    def before(self, module: nn.Module, arguments: tuple) -> None:
        """Forward pre-hook: put the mixed weight in."""
        if module.training:
            held = module.get_submodule(self.path)._parameters
            plain = held[self.name]
            assert plain is not None
            self.plain, self.reached = plain, True
            self.pretrained = self.pretrained.to(plain)
            # Past nn.Module's check, which wants a Parameter: gradients must flow through the mixture.
            p = self.rate if torch.compiler.is_compiling() else self.p
            held[self.name] = mixout(plain, self.pretrained, p)  # pyrefly: ignore

    def after(self, module: nn.Module, arguments: tuple, output: Any) -> None:
        """Forward hook: put the parameter back; called after an exception too."""
        if self.plain is not None:
            module.get_submodule(self.path)._parameters[self.name] = self.plain
            self.plain = None


class Mixout(NoiseHandle):
    """The handle that `mixout_` returns.

    Attributes:
        p: the probability of mixing in, as last set.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self._mixed: dict[str, MixedWeight] = {}

    def _set(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise InputError(f"p is {value}, but a probability of mixing lies between 0 and 1.")
        self.p = value
        for mixed in self._mixed.values():
            mixed.p = value
            mixed.rate.fill_(value)

    def place(self, model: nn.Module, name: str, pretrained: Tensor) -> None:
        """Mix one parameter."""
        path, _, last = name.rpartition(".")
        parent, _, child = path.rpartition(".")
        # nn.MultiheadAttention never calls its output projection, it reads the projection's weight.
        inner = child if path and isinstance(model.get_submodule(parent), nn.MultiheadAttention) else ""
        module = model.get_submodule(parent if inner else path)
        for hook in module._forward_pre_hooks.values():
            other = getattr(hook, "__self__", None)
            if isinstance(other, MixedWeight) and (other.path, other.name) == (inner, last):
                raise InputError(
                    f"{name} is mixed already; call remove() on the handle of the first mixout_."
                )
        self._mixed[name] = mixed = MixedWeight(inner, last, pretrained)
        self._hooks.append(module.register_forward_pre_hook(mixed.before))
        self._hooks.append(module.register_forward_hook(mixed.after, always_call=True))

    @property
    def names(self) -> list[str]:
        """The parameters that are mixed."""
        return list(self._mixed)

    @property
    def unreached(self) -> list[str]:
        """Those of them that no training forward has mixed yet, as nothing called their module."""
        return [name for name, mixed in self._mixed.items() if not mixed.reached]


def mixout_(
    model: nn.Module,
    p: float | Schedule,
    *,
    pretrained: Mapping[str, Tensor] | None = None,
    select: Patterns | None = None,
) -> Mixout:
    """Let a model train with its weights mixed with the pre-trained ones, in place; see `mixout`.

    Each training forward of a module draws a new mixture of its weight; evaluation uses the plain weight.
    Parameters, their tying and the keys of ``state_dict`` stay. The pre-trained values are in the handle and
    not in ``state_dict``: give ``pretrained`` again when resuming.

    Args:
        model: the model, before it is sharded or compiled.
        p: probability of mixing in; a schedule moves with ``set_progress``.
        pretrained: a ``state_dict``; what it lacks or has in another shape is not mixed. None for the weights
            as they are now, the random ones of a new classifier among them.
        select: Unix patterns of parameter names; by default all trainable matrices but embeddings.

    Raises:
        InputError: for a p outside [0, 1], a pattern that matches nothing, a ``pretrained`` that fits
            nothing, or weights that are mixed already.

    Paper: Lee, Cho and Kang 2020, "Mixout: effective regularization to finetune large-scale pretrained
    language models".
    """
    parameters = select_parameters(model, select)
    if select is None:
        parameters = [held for held in parameters if not held.is_embedding]
    handle = Mixout(as_schedule(p))
    try:
        for held, value in zip(*starting_values(parameters, pretrained), strict=True):
            # A module that the model holds twice has two names, and mixes once.
            for name in dict(zip(held.modules, held.names, strict=True)).values():
                handle.place(model, name, value)
        handle.set_progress(0.0)
    except Exception:
        # What fails halfway leaves the model as it was.
        if handle.names:
            handle.remove()
        raise
    return handle
