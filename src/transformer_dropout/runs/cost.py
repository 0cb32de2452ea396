"""What a run costs, counted before it starts: parameters, FLOPs, memory."""

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..errors import InputError
from ..kernels.torch_internals import storage_identity
from ..surgery.regularize import Regularization
from .evaluate import evaluating
from .held_out import HeldOut
from .loop import build_model
from .objective import Loss, Objective
from .run_config import RunConfig
from .task import Batch, Splits, Task
from .training_config import TrainingConfig

META = torch.device("meta")
# Parts of names that tell an embedding of positions, which papers leave out of a model's size.
POSITIONAL = ("position", "wpe", "pos_embed")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Counts for one run.

    Attributes:
        parameters: all of the model's and its regularizers' parameters.
        without_positional: the same without the embeddings of positions, as papers count.
        regularizer: those that the recipe added.
        frozen: those of them that never receive a gradient.
        trained: all that do; fine-tuning may train a few only.
        items: what is trained on over the whole run, in the task's items.
        training_flops_per_item: floating-point operations of matrix products, forward and backward.
        inference_flops_per_item: of scoring it, in evaluation mode.
        gate_share: fraction of the training FLOPs spent in the recipe's layers.
        memory_bytes: estimate for weights, their average where there is one, gradients, Adam's moments and
            saved activations of one forward.
    """

    parameters: int
    without_positional: int
    regularizer: int
    frozen: int
    trained: int
    items: int
    training_flops_per_item: float
    inference_flops_per_item: float
    gate_share: float
    memory_bytes: int


def sketch_of_splits(config: RunConfig) -> Splits | None:
    """Return stand-ins for a run's examples, made without reading any; None where the task has none."""
    sketch = getattr(config.find_task(), "sketch", None)
    return None if sketch is None else sketch(config.model, config.data)


def count_cost(config: RunConfig, splits: Splits) -> Cost:
    """Count a run's cost, on a model without data where it can be built so: nothing is computed there.

    Args:
        config: the run.
        splits: its examples, or stand-ins for them.

    Raises:
        InputError: when the recipe does not fit the model.
    """
    task, training = config.find_task(), config.training
    model, objective, batch, regularization = build_for_counting(config, splits)
    both = count_flops(task.loss, model, batch)
    plain, plain_both = model, both
    if config.recipe:
        plain, _, its_batch, _ = build_for_counting(without_recipe(config), splits)
        plain_both = count_flops(task.loss, plain, its_batch)
    total = count_parameters(model)
    examples = min(2, training.batch)
    memory = needed_bytes(training, objective, model, batch)
    training_flops = both if objective.is_the_tasks else count_flops(objective, model, batch)
    held_out = HeldOut(training, model, regularization, config.seed)
    if held_out.gates is not None:
        training_flops += count_flops(task.loss, model, batch, held_out.gates.gates) / held_out.every
    if held_out.tuned is not None:
        training_flops += (2 * training_flops + both) / (held_out.every * training.accumulation)
    forwards = training.steps * training.accumulation
    positional = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if any(part in name for part in POSITIONAL)
    )
    return Cost(
        parameters=total,
        without_positional=total - positional,
        regularizer=total - count_parameters(plain),
        frozen=total - count_parameters(plain) - (count_trained(model) - count_trained(plain)),
        trained=count_trained(model),
        items=forwards * training.batch * batch.items // examples,
        training_flops_per_item=training_flops / batch.items,
        inference_flops_per_item=count_inference(task, model, batch) / batch.items,
        gate_share=1 - plain_both / both,
        memory_bytes=memory,
    )


def needed_bytes(training: TrainingConfig, objective: Loss, model: nn.Module, batch: Batch) -> int:
    """Return an estimate of the memory that a run takes, from a forward of a small batch."""
    per_example = saved_bytes(objective, model, batch) / min(2, training.batch)
    return int((20 if training.ema else 16) * count_parameters(model) + per_example * training.batch)


def build_for_counting(
    config: RunConfig, splits: Splits
) -> tuple[nn.Module, Objective, Batch, Regularization]:
    """Return a run's model, loss, small batch and layers, without data where the model allows it."""
    task = config.find_task()
    batch = task.batch(splits.train, range(min(2, config.training.batch, len(splits.train))))
    try:
        with META:
            model, regularization = build_model(config, splits)
        # As the run has it: pre-trained parts come in evaluation, inside wrappers in training.
        model.train()
        objective = Objective(task, config.training, model, splits)
        objective(model, batch.to(META))
        count_inference(task, model, batch.to(META))
    except (RuntimeError, NotImplementedError, InputError):
        # Its code looks at numbers, or its places show in a run only; such a model has neither.
        model, regularization = build_model(config, splits)
        model.train()
        return model, Objective(task, config.training, model, splits), batch, regularization
    return model, objective, batch.to(META), regularization


def without_recipe(config: RunConfig) -> RunConfig:
    """Return the run without its layers, and without what needs some."""
    training = TrainingConfig(batch=config.training.batch, experts=config.training.experts)
    return replace(config, recipe=[], training=training)


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_trained(model: nn.Module) -> int:
    """Return the number of parameters that receive a gradient."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_flops(
    loss_of: Loss, model: nn.Module, batch: Batch, parameters: list[nn.Parameter] | None = None
) -> int:
    """Return the FLOPs of one forward and backward; no gradient stays behind.

    Args:
        loss_of: the loss of the forward.
        model, batch: what it is computed of.
        parameters: those that the backward is for; None for all.
    """
    # The plain attention path is made of products that the counter knows; the fused ones differ by device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        loss_of(model, batch).backward(inputs=parameters)
    model.zero_grad(set_to_none=True)
    return counted.get_total_flops()


def count_inference(task: Task, model: nn.Module, batch: Batch) -> int:
    """Return the FLOPs of scoring a batch, in evaluation mode."""
    fused = torch.backends.mha.get_fastpath_enabled()
    # PyTorch's own encoder layers are one operation in evaluation, in which the counter sees no product.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
            task.score(model, batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counted.get_total_flops()


def saved_bytes(loss_of: Loss, model: nn.Module, batch: Batch) -> int:
    """Return the bytes that one forward saves for its backward, parameters left out."""
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        seen[storage_identity(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(model, batch)
    for parameter in model.parameters():
        seen.pop(storage_identity(parameter), None)
    return sum(seen.values())
