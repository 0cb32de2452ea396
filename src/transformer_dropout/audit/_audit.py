"""The one verb: see which dropout really runs."""

from typing import Any

import torch
from torch import nn

from ..errors import InputError, first_line
from ..sites.observation.inputs import arguments_for, described
from ..sites.observation.restore import refuse_what_cannot_be_watched, unchanged
from . import _findings as check
from ._configured import rate_attributes
from ._events import Audit, Finding
from ._modes import eval_while_training, varies_in_eval
from ._observe import Observer, observe_training
from ._schedule import RateHandle, schedule_recompiles
from ._unread import (
    Rebuild,
    dead_fields,
    is_regularized,
    never_called,
    probe_fields,
    read_fields,
    skipped_blocks,
)
from ._weight_decay import weight_decay_on_norms


def assert_clean(model: nn.Module, inputs: Any, *, ignore: tuple[str, ...] = (), **options: Any) -> Audit:
    """Audit a model in a test, and fail with every finding.

    Args:
        model, inputs, options: as in ``audit``.
        ignore: codes of findings to accept.

    Returns:
        The audit.

    Raises:
        AssertionError: with one line per finding.
    """
    # pytest leaves this frame out, so that the traceback ends in the test.
    __tracebackhide__ = True
    result = audit(model, inputs, **options)
    left = [finding for finding in result.findings if finding.code not in ignore]
    if left:
        raise AssertionError("\n".join(f"{f.code} at {f.site or 'the model'}: {f.message}" for f in left))
    return result


def audit(
    model: nn.Module,
    inputs: Any,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    regularization: RateHandle | None = None,
    rebuild: Rebuild | None = None,
) -> Audit:
    """Run a model once in training and once in evaluation, and report every random or mask operation.

    The training forward keeps the mode of each module when the model is in training, so that parts the user
    put in evaluation stay there; else it calls ``model.train()``. A backward pass follows where it may run
    something random again, as activation checkpointing makes it. Modes, attributes, buffers, gradients and
    the random state are put back.

    Args:
        model: any module that is not compiled.
        inputs: what the model is called with: a mapping of keywords, a tuple of positional arguments, a
            tensor, or any one object that it takes.
        optimizer: to look for weight decay on norms.
        regularization: the handle of ``regularize_``, to look for recompilation under its schedule; this
            traces the model with torch.compile.
        rebuild: makes the same model with other config fields, ``{"attn_pdrop": 0.2, ...}``, so that each
            field can be told from others of the same value.

    Raises:
        InputError: for a compiled or scripted model, or inputs that cannot be passed to a model.
    """
    refuse_what_cannot_be_watched(model, "td.audit")
    arguments_for(model, inputs)
    with unchanged(model):
        training, failure = observe_or_refuse(model if model.training else model.train(), inputs)
        notes = notes_on(training, failure)
        uncalled, read = never_called(model, inputs, training)
        fields = read_fields(model, training) if rebuild is None else probe_fields(model, inputs, rebuild)
        recompiles = list(schedule_recompiles(model, inputs, regularization)) if regularization else []
        findings = list(eval_while_training(model, inputs, training))
        evaluation = Observer(model.eval(), training=False)
        evaluation.run(inputs)
        findings += varies_in_eval(model, inputs, evaluation)
    findings += findings_of_both_forwards(model, training, evaluation)
    ignored = [finding.site for finding in findings if finding.code == "kernel-drops-attention-dropout"]
    # An attention that ignores its rate says all there is to say of the module that held it.
    findings += [finding for finding in uncalled if finding.site.rpartition(".")[0] not in ignored]
    dead = list(dead_fields(model, fields, attention_rates(model) if ignored else []))
    if is_regularized(model):
        notes += [f"{f.site} has no effect: the layers of a recipe are in the model." for f in dead]
    else:
        findings += dead
    findings += recompiles
    if optimizer is not None:
        findings += weight_decay_on_norms(model, optimizer)
    return Audit(
        events=(*training.events, *evaluation.events),
        findings=tuple(findings),
        fields=fields,
        notes=(*notes, *read),
    )


def observe_or_refuse(model: nn.Module, inputs: Any) -> tuple[Observer, str | None]:
    """Watch a model in training; return what was seen, and why its backward pass failed, if it did.

    Raises:
        InputError: when its forward fails on the inputs.
    """
    try:
        return observe_training(model, inputs)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        raise InputError(
            f"{type(model).__name__} could not be run with {described(inputs)}: {first_line(error)}"
        ) from error


def findings_of_both_forwards(model: nn.Module, training: Observer, evaluation: Observer) -> list[Finding]:
    """Return the findings that follow from the two forwards alone."""
    return [
        *check.active_in_eval(evaluation),
        *check.kernel_drops_attention_dropout(model, training),
        *check.recompute_mask_differs(training),
        *check.frozen_but_drops(model, training),
        *check.dropout_before_batch_norm(training),
        *check.dropout_before_output(model, training),
        *check.dropout_twice(training),
        *check.drop_path_twice(training),
        *check.dropout_before_softmax(training),
        *check.own_dropout_beside_recipe(training),
    ]


def attention_rates(model: nn.Module) -> list[float]:
    """Return the rates that attention modules hold."""
    attentions = (module for path, module in model.named_modules() if check.is_attention(path, module))
    return [rate for module in attentions for _, rate in rate_attributes(module)]


def notes_on(training: Observer, failure: str | None) -> list[str]:
    """Return what was not seen: the backward pass when it failed, and blocks that did not run."""
    notes = []
    if failure is not None:
        notes.append(f"Recomputation was not observed; the backward pass failed: {failure}")
    skipped = sorted(skipped_blocks(training))
    if skipped:
        notes.append(f"Blocks that did not run in the training forward: {', '.join(skipped)}.")
    return notes
