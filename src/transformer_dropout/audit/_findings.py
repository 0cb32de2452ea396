"""What to put right, judged from the events of the two forwards."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import Size, nn

from ..layers import DropoutLayer
from ..sites.observation.stack import is_dropout_module
from ._configured import TOLERANCE, rate_attributes
from ._events import Event, Finding, generalized, merged, patterns, show_rate
from ._observe import Observer
from ._places import ATTENTION, parents, within

# Names under which attention modules hold their rate besides those that say attention.
PLAIN_NAMES = frozenset({"dropout", "dropout_p", "dropout_prob"})


def active_in_eval(evaluation: Observer) -> Iterator[Finding]:
    """Find what is still random in evaluation."""
    for event in representatives(event for event in evaluation.events if event.random):
        if event.rate:
            yield Finding(
                code="active-in-eval",
                site=event.path,
                message=f"{event.operation} drops with a rate of {event.rate:.4g} in evaluation. "
                + fix_of(event),
            )
        else:
            # Such as sampling in a variational model; nothing says that it is a dropout.
            yield Finding(
                code="random-in-eval",
                site=event.path,
                message=f"{event.operation} draws random numbers in evaluation, so two evaluations differ. "
                "Draw them only if self.training.",
            )


def fix_of(event: Event) -> str:
    """Return how to keep a dropout out of evaluation."""
    if event.kind == "attention_weights":
        return "Attention does not look at self.training: pass dropout_p=p if self.training else 0.0."
    return "Pass training=self.training to functions, and let model.eval() reach every module."


def dropout_before_batch_norm(training: Observer) -> Iterator[Finding]:
    """Find dropouts whose output reaches a batch norm."""
    fed: dict[str, tuple[set[str], set[str]]] = {}
    for norm, numbers in training.lineage.batch_norms.items():
        # Stochastic depth was made for networks with batch norms.
        for number in numbers - training.lineage.whole_samples:
            path = training.events[number].path
            places, norms = fed.setdefault(generalized(path), (set(), set()))
            places.add(path)
            norms.add(norm)
    for places, norms in fed.values():
        yield Finding(
            code="dropout-before-batch-norm",
            site=merged(places),
            message=f"Its output reaches the batch norm {', '.join(patterns(sorted(norms)))}. The norm "
            "learns the variance of dropped values, which is wrong in evaluation: drop after the last "
            "batch norm (Li et al. 2019).",
        )


def dropout_before_output(model: nn.Module, training: Observer) -> Iterator[Finding]:
    """Find dropouts whose output goes straight into an output layer of one number, as for regression.

    A classifier has one there by long custom, and its probabilities stand the noise.
    """
    for path, (number, shape) in training.heads.items():
        if predicts_numbers(model, shape):
            yield Finding(
                code="dropout-before-output",
                site=training.events[number].path,
                message=f"Its output goes straight into {path or 'the last layer'}, which predicts numbers: "
                "all its noise is in the prediction, and the outputs are more spread in training than in "
                "evaluation. For regression set its rate to 0; a classifier with one logit may keep it.",
            )


def predicts_numbers(model: nn.Module, shape: Size) -> bool:
    """Return whether an output layer is for regression, by the config, else by its single output."""
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    return problem == "regression" if problem is not None else shape[-1] == 1


def dropout_twice(training: Observer) -> Iterator[Finding]:
    """Find dropouts of which the second takes what the first has left, and nothing was computed between."""
    for site, message in in_a_row(training, "tensor"):
        yield Finding(code="dropout-twice", site=site, message=message)


def drop_path_twice(training: Observer) -> Iterator[Finding]:
    """Find branches of which whole samples are dropped twice, whatever was computed between.

    The second time may come behind the sum with the skip connection, which then is dropped as well.
    """
    for site, message in in_a_row(training, "branch"):
        yield Finding(code="drop-path-twice", site=site, message=message)
    sums: dict[tuple[str, str], list[Event]] = {}
    for numbers in sorted(training.lineage.in_sums):
        if not any(is_ours(training, number) for number in numbers):
            first, second = (training.events[number] for number in numbers)
            sums.setdefault((generalized(first.path), generalized(second.path)), []).extend((first, second))
    for events in sums.values():
        yield Finding(
            code="drop-path-twice",
            site=merged({event.path for event in events[1::2]}),
            message=f"It drops whole samples with {spread(event.rate for event in events[1::2])} behind the "
            "residual sum, the skip connection with them, after the dropout of "
            f"{merged({event.path for event in events[::2]}) or 'the model'} has dropped the branch with "
            f"{spread(event.rate for event in events[::2])}. Drop the branch alone: x + drop_path(f(x)).",
        )


def in_a_row(training: Observer, what: str) -> Iterator[tuple[str, str]]:
    """Yield the place and the message for each second dropout of a tensor, or of a branch."""
    groups: dict[tuple[str, str], list[tuple[Event, Event]]] = {}
    for first, second in sorted(training.lineage.in_a_row):
        one, other = training.events[first], training.events[second]
        whole = second in training.lineage.whole_samples
        ours = is_ours(training, first) or is_ours(training, second)
        # Of few samples none may have been dropped this time.
        # An adapter reads what others read too, and drops for itself alone.
        act = (whole or (one.rate and other.rate)) and other.kind != "lora"
        if act and not ours and whole == (what == "branch"):
            key = generalized(one.path), generalized(other.path)
            groups.setdefault(key, []).append((one, other))
    for pairs in groups.values():
        before = merged({one.path for one, _ in pairs}) or "the model"
        rates = [(one.rate, other.rate) for one, other in pairs]
        together = [1 - (1 - a) * (1 - b) for a, b in rates if a is not None and b is not None]
        first, second = spread(one.rate for one, _ in pairs), spread(other.rate for _, other in pairs)
        yield (
            merged({other.path for _, other in pairs}),
            f"It drops with {second} what the dropout of {before} has left of the same {what} with {first}: "
            f"{spread(together)} together. Remove one, or set its rate to 0.",
        )


def spread(rates: Iterable[float | None]) -> str:
    """Return rates as text: one, or from the smallest to the largest."""
    known = sorted(rate for rate in rates if rate is not None)
    return " to ".join(dict.fromkeys(map(show_rate, known[:1] + known[-1:]))) or "an unknown rate"


def dropout_before_softmax(training: Observer) -> Iterator[Finding]:
    """Find dropouts of what a softmax takes."""
    numbers = sorted(training.lineage.softmaxes)
    for event in representatives(training.events[n] for n in numbers if training.events[n].rate):
        yield Finding(
            code="dropout-before-softmax",
            site=event.path,
            message="It drops before the softmax: a score of 0 is no weight of 0, but one among the others, "
            "and the rest is scaled up inside an exponential. Drop the weights behind the softmax, or use "
            "td.DropKey, which sets scores to minus infinity.",
        )


def own_dropout_beside_recipe(training: Observer) -> Iterator[Finding]:
    """Find what a model still drops itself at a place where a layer of a recipe acts."""
    ours = {
        (event.kind, training.block_of(event.path)): event.path
        for number, event in enumerate(training.events)
        if is_ours(training, number) and event.kind != "unknown"
    }
    beside: dict[tuple[str, str], Event] = {}
    for number, event in enumerate(training.events):
        path = ours.get((event.kind, training.block_of(event.path)))
        if path is not None and event.rate and not is_ours(training, number):
            beside.setdefault((patterns([event.path])[0], patterns([path])[0]), event)
    for (site, layer), event in beside.items():
        yield Finding(
            code="own-dropout-beside-recipe",
            site=site,
            message=f"The model's own {event.operation} still drops here with {event.rate:.4g}, beside the "
            f"recipe's layer {layer} at the same place ({event.kind}), so more is dropped than it says. "
            + (f"Set {event.source} to 0." if event.source else "Take it out of the model's code."),
        )


def is_ours(training: Observer, number: int) -> bool:
    """Return whether a random operation is that of a layer of this package."""
    return isinstance(training.traces[number].module, DropoutLayer)


def frozen_but_drops(model: nn.Module, training: Observer) -> Iterator[Finding]:
    """Find dropouts in parts whose parameters are all frozen, in a model that does train."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return
    parts: dict[str, float] = {}
    for number, event in enumerate(training.events):
        # Of a block in which adapters train all regularizes these; and a recipe was asked for.
        block = training.block_of(event.path)
        trains = is_trained(model, event.path) or (block and is_trained(model, block))
        if event.rate and not trains and not is_ours(training, number):
            parts[holder(model, event.path)] = event.rate
    for site in patterns(parts):
        yield Finding(
            code="frozen-but-drops",
            site=site,
            message="All its parameters are frozen, yet it drops in training: noise without anything to "
            "regularize there. Put it in evaluation mode after model.train(), with .eval().",
        )


def is_trained(model: nn.Module, path: str) -> bool:
    """Return whether a module, or the innermost one around it that has parameters, trains any."""
    return any(p.requires_grad for p in model.get_submodule(holder(model, path)).parameters())


def holder(model: nn.Module, path: str) -> str:
    """Return the path of a module that has parameters, itself or the innermost one around it."""
    around = (path, *parents(path))
    return next((p for p in around if next(model.get_submodule(p).parameters(), None) is not None), "")


def kernel_drops_attention_dropout(model: nn.Module, training: Observer) -> Iterator[Finding]:
    """Find attention modules that hold a rate which their attention ignores."""
    ignored: dict[tuple[str, float], list[str]] = {}
    for path, module in model.named_modules():
        if path not in training.called - training.evaluated or not is_attention(path, module):
            continue
        inside = [event for event in training.events if within(event.path, path)]
        if any(event.kind == "attention_weights" for event in inside):
            continue
        # A dropout module that ran did so with a rate of its own.
        seen = [e.resolved for e in inside if not is_dropout_module(model.get_submodule(e.path))]
        for name, rate in rate_attributes(module):
            child = name.removesuffix(".p")
            plain = name in PLAIN_NAMES or ATTENTION.search(name) is not None
            called = f"{path}.{child}".lstrip(".") in training.called
            if rate > 0 and plain and not called and not any(is_close(rate, other) for other in seen):
                ignored.setdefault((name, rate), []).append(path)
    for (name, rate), paths in ignored.items():
        for site in patterns(paths):
            yield Finding(
                code="kernel-drops-attention-dropout",
                site=site,
                message=f"It holds {name} = {rate:.4g}, but no dropout ran in its attention. Choose "
                "an attention that applies it, as attn_implementation='eager' does, or set the rate to 0.",
            )


def is_attention(path: str, module: nn.Module) -> bool:
    """Return whether a module is an attention by its class or by its name."""
    if is_dropout_module(module):
        return False
    return bool(ATTENTION.search(type(module).__name__) or ATTENTION.search(path.rpartition(".")[2]))


def is_close(rate: float | None, other: float | None) -> bool:
    """Return whether two rates are the same number."""
    return rate is not None and other is not None and abs(rate - other) < TOLERANCE


def recompute_mask_differs(training: Observer) -> Iterator[Finding]:
    """Find masks that activation checkpointing drew anew instead of repeating."""
    different = [
        path
        for path, prints in training.recomputed.items()
        if not set(prints) <= set(training.fingerprints.get(path, ()))
    ]
    for site in patterns(different):
        yield Finding(
            code="recompute-mask-differs",
            site=site,
            message="Activation checkpointing recomputed it with another mask, so the gradients are those of "
            "another forward. Use checkpoint(..., preserve_rng_state=True), the default.",
        )


def representatives(events: Iterable[Event]) -> list[Event]:
    """Return one event, with a pattern as its path, for each group that differs in block numbers only."""
    groups: dict[tuple, list[Event]] = {}
    for event in events:
        site = patterns([event.path])[0]
        key = (len(site.split(".")), event.kind, event.operation, event.rate)
        groups.setdefault(key, []).append(event)
    result = []
    for group in groups.values():
        for site in patterns(event.path for event in group):
            result.append(replace(group[0], path=site))
    return result
