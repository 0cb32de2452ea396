"""Turn every dropout of a model off, or leave them on in evaluation, for the length of a ``with`` block."""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from ..kernels.torch_internals import is_batch_norm, schema_of
from ..layers import DropoutLayer
from ..sites.observation.inputs import call, checked_arguments
from ..sites.observation.lineage import tensors_in
from ..sites.observation.restore import refuse_what_cannot_be_watched, unchanged
from ..sites.observation.stack import ModuleStack, is_dropout_module
from ._configured import rate_attributes

DROPOUTS = re.compile(r"(feature_)?(alpha_)?dropout([123]d)?_?")
# What draws random numbers without saying what for.
DRAWS = re.compile(
    r"(rand|randn|randint)(_like)?|randperm|normal_?|uniform_|random_|bernoulli_?|multinomial|poisson|binomial"
    r"|exponential_|geometric_|cauchy_|log_normal_|gumbel_softmax"
)


class DropoutOff(TorchFunctionMode):
    """Calls every dropout function, and every attention, with a rate of 0.

    Attributes:
        stack: says which module of the model is running.
    """

    stack: ModuleStack

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "").partition(".")[0]
        if schema_of(func) is not None and func.namespace == "transformer_dropout":
            args = without_rate(func, args)
        elif DROPOUTS.fullmatch(name):
            return args[0] if args else kwargs["input"]
        if name == "native_dropout":
            x = args[0] if args else kwargs["input"]
            return x.clone(), torch.ones_like(x, dtype=torch.bool)
        position = attention_rate_position(func, name)
        if position is not None and len(args) > position:
            args = (*args[:position], 0.0, *args[position + 1 :])
        elif position is not None:
            kwargs["dropout_p"] = 0.0
        elif name == "rrelu":
            args, kwargs = args[:3], {**kwargs, "training": False}
        result = func(*args, **kwargs)
        if DRAWS.fullmatch(name) and not self.only_for_layer_drop(result):
            where = self.stack.path or "the model itself"
            raise InputError(
                f"td.disabled cannot turn off {name} in {where}, whose random numbers nothing calls "
                "dropout; draw them only when the rate is above 0, or put that module in evaluation mode."
            )
        return result

    def only_for_layer_drop(self, drawn: Any) -> bool:
        """Return whether one number was drawn to be compared with a layer drop's rate, which is 0 now."""
        rates = vars(self.stack.module)
        return isinstance(drawn, Tensor) and drawn.numel() == 1 and any("layerdrop" in name for name in rates)


def without_rate(func: Any, args: tuple) -> tuple:
    """Return the arguments of an operation of this package with a rate of 0."""
    names = [argument.name for argument in schema_of(func).arguments]
    return tuple(
        0.0 if name in ("p", "dropout_p") else value for name, value in zip(names, args, strict=True)
    )


def attention_rate_position(func: Any, name: str) -> int | None:
    """Return where an attention function takes its ``dropout_p``, None for other functions."""
    if name == "scaled_dot_product_attention":
        return 4
    if name == "multi_head_attention_forward":
        return 10
    schema = schema_of(func)
    if schema is not None:
        names = [argument.name for argument in schema.arguments]
        return names.index("dropout_p") if "dropout_p" in names else None
    return None


@contextmanager
def disabled(model: nn.Module, inputs: Any = None) -> Iterator[nn.Module]:
    """Turn off every dropout of a model, in training mode too, whatever calls it.

    Modules, functions, attention kernels, layer drop and stochastic depth drop nothing; a ``LearnedDropout``
    uses its evaluation mask, and has no penalty then. Batch norms stay as they are. What runs outside the
    model's forward is not touched, and at the end everything is as it was.

    Args:
        model: any module that is not compiled.
        inputs: with them, two forwards in training mode are run at once and compared, as a proof; as in
            ``audit``.

    Raises:
        InputError: for a compiled model, for randomness that is no dropout, or when two forwards differ.
    """
    refuse_what_cannot_be_watched(model, "td.disabled")
    mode = DropoutOff()
    mode.stack = ModuleStack(model, modes=(mode,))
    with rates_at_zero(model), evaluated_dropouts(model), mode.stack:
        if inputs is not None:
            prove_still(model, inputs)
        yield model


@contextmanager
def rates_at_zero(model: nn.Module) -> Iterator[None]:
    """Set every rate attribute to 0; kernels that no function mode can reach are given it from there."""
    before = [
        (module, name, vars(module)[name])
        for module in model.modules()
        for name, _ in rate_attributes(module)
        if name in vars(module) and isinstance(vars(module)[name], float)
    ]
    try:
        for module, name, _ in before:
            vars(module)[name] = 0.0
        yield
    finally:
        for module, name, value in before:
            vars(module)[name] = value


@contextmanager
def evaluated_dropouts(model: nn.Module) -> Iterator[None]:
    """Let each dropout module run as in evaluation, whatever mode the model is put in meanwhile."""

    def begin(module: nn.Module, args: tuple) -> None:
        open_calls.append((module.training, vars(module).get("eval_mask")))
        module.training = False
        if open_calls[-1][1] == "sample":
            vars(module)["eval_mask"] = "threshold"

    def end(module: nn.Module, args: tuple, output: Any) -> None:
        module.training, eval_mask = open_calls.pop()
        if eval_mask is not None:
            vars(module)["eval_mask"] = eval_mask

    open_calls: list[tuple[bool, Any]] = []
    with ExitStack() as hooks:
        for module in model.modules():
            if is_dropout_module(module) or isinstance(module, DropoutLayer):
                hooks.callback(module.register_forward_pre_hook(begin, prepend=True).remove)
                hooks.callback(module.register_forward_hook(end, always_call=True).remove)
        yield


def prove_still(model: nn.Module, inputs: Any) -> None:
    """Raise InputError unless two forwards in training mode are equal to the last bit."""
    with unchanged(model), torch.no_grad():
        if not model.training:
            model.train()
        first = [value.clone() for value in tensors_in(call(model, inputs))]
        second = list(tensors_in(call(model, inputs)))
    for one, other in zip(first, second, strict=True):
        if not torch.equal(one.nan_to_num(), other.nan_to_num()):
            raise InputError(
                "Two forwards in training mode differ although every dropout is off; the model draws random "
                "numbers in its own kernels: td.audit(model, inputs) lists what it can see of them."
            )


@dataclass(frozen=True, kw_only=True)
class MonteCarlo:
    """What several stochastic forwards say together.

    Attributes:
        mean: of the outputs.
        variance: of the outputs over the forwards, without bias; 0 everywhere if the model drops nothing.
        probabilities: the mean of the softmax over the last dimension, for classifiers.
        entropy: of ``probabilities``, in nats: the whole uncertainty.
        mutual_information: ``entropy`` less the mean entropy of the single forwards, in nats: the part that
            comes from not knowing the weights.
        n: how many forwards.

    Papers: Gal & Ghahramani 2016, "Dropout as a Bayesian approximation"; Houlsby et al. 2011, "Bayesian
    active learning for classification and preference learning".
    """

    mean: Tensor
    variance: Tensor
    probabilities: Tensor
    entropy: Tensor
    mutual_information: Tensor
    n: int


class Predictor:
    """Runs a model several times with its dropout on; made by ``mc_dropout``.

    Call it as the model is called, or with the one thing that ``audit`` takes.
    """

    def __init__(self, model: nn.Module, n: int) -> None:
        self.model, self.n = model, n
        self.open = True

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> MonteCarlo:
        if not self.open:
            raise InputError("The block of td.mc_dropout has ended; predict inside it.")
        if len(args) == 1 and not kwargs:
            outputs = (call(self.model, args[0]) for _ in range(self.n))
        else:
            args, kwargs = checked_arguments(self.model, (args, kwargs))
            outputs = (self.model(*args, **kwargs) for _ in range(self.n))
        return summarize(map(main_output, outputs), self.n)


def summarize(outputs: Iterator[Tensor], n: int) -> MonteCarlo:
    """Return mean, variance, entropy and mutual information of outputs, one at a time in memory."""
    mean = squares = probabilities = entropies = torch.zeros(())
    for number, output in enumerate(outputs, start=1):
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if number == 1:
            mean = torch.zeros_like(output)
        # Welford 1962: no cancellation where the mean is large.
        difference = output - mean
        mean = mean + difference / number
        squares = squares + difference * (output - mean)
        softmax = output.softmax(-1)
        probabilities = probabilities + softmax / n
        entropies = entropies + entropy_of(softmax) / n
    entropy = entropy_of(probabilities)
    return MonteCarlo(
        mean=mean,
        variance=squares / (n - 1),
        probabilities=probabilities,
        entropy=entropy,
        mutual_information=(entropy - entropies).clamp_min(0),
        n=n,
    )


def entropy_of(probabilities: Tensor) -> Tensor:
    """Return the entropy over the last dimension, in nats."""
    return torch.special.entr(probabilities).sum(-1)


def main_output(output: Any) -> Tensor:
    """Return the logits of a model's output, else its first tensor of floating numbers.

    Raises:
        InputError: when there is none.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    for value in tensors_in(output):
        if value.is_floating_point() and value.ndim:
            return value
    raise InputError(f"The model returned a {type(output).__name__} without a tensor of logits to average.")


@contextmanager
def mc_dropout(model: nn.Module, n: int) -> Iterator[Predictor]:
    """Predict with dropout on: mean and variance over ``n`` stochastic forwards.

    Usage::

        with td.mc_dropout(model, 20) as predict:
            result = predict(**batch)
        result.mean, result.variance, result.entropy, result.mutual_information

    Whatever drops in training drops here: modules, functions and attention. Batch norms use their running
    statistics, no gradients are kept, and at the end the model is as it was. The random state moves on.

    Args:
        model: any module that is not compiled.
        n: how many forwards, at least 2.

    Raises:
        InputError: for a compiled model, or fewer than two forwards.

    Paper: Gal & Ghahramani 2016, "Dropout as a Bayesian approximation".
    """
    if not isinstance(n, int) or n < 2:
        raise InputError(f"n is {n}, but a variance takes at least 2 forwards; 20 are usual.")
    refuse_what_cannot_be_watched(model, "td.mc_dropout")
    predict = Predictor(model, n)
    with unchanged(model, random_state=False):
        model.train()
        for module in model.modules():
            if is_batch_norm(module):
                module.eval()
        try:
            yield predict
        finally:
            predict.open = False
