"""What a run costs, counted before it starts: parameters, FLOPs, memory."""

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..tasks.language.decoder import Decoder
from .loop import build_model
from .run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Counts for one run.

    Attributes:
        parameters: all of the model's and its regularizers' parameters.
        without_positional: the same without the positional embedding, as papers count.
        regularizer: those that the recipe added.
        frozen: those that never receive a gradient.
        tokens: training tokens over the whole run.
        training_flops_per_token: floating-point operations of matrix products, forward and backward.
        inference_flops_per_token: of one forward.
        gate_share: fraction of the training FLOPs spent in the recipe's layers.
        memory_bytes: estimate for weights, gradients, Adam's moments and saved activations of one forward.
    """

    parameters: int
    without_positional: int
    regularizer: int
    frozen: int
    tokens: int
    training_flops_per_token: float
    inference_flops_per_token: float
    gate_share: float
    memory_bytes: int


def count_cost(config: RunConfig, vocabulary_size: int) -> Cost:
    """Count a run's cost on a model without data: nothing is allocated, nothing is computed.

    Args:
        config: the run.
        vocabulary_size: number of token ids.

    Raises:
        InputError: when the recipe does not fit the model.
    """
    with torch.device("meta"):
        model, _ = build_model(config, vocabulary_size)
        plain, _ = build_model(replace(config, recipe=[]), vocabulary_size)
    total = count_parameters(model)
    batch, context = min(2, config.training.batch), config.model.context
    forward, training = count_flops(model, batch, context)
    plain_training = count_flops(plain, batch, context)[1]
    training_config = config.training
    per_window = saved_bytes(model, batch, context) / batch
    return Cost(
        parameters=total,
        without_positional=total - model.embedding.position.weight.numel(),
        regularizer=total - count_parameters(plain),
        frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad),
        tokens=training_config.steps * training_config.batch * training_config.accumulation * context,
        training_flops_per_token=training / (batch * context),
        inference_flops_per_token=forward / (batch * context),
        gate_share=1 - plain_training / training,
        memory_bytes=int(16 * total + per_window * training_config.batch),
    )


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: Decoder, batch: int, context: int) -> tuple[int, int]:
    """Return the FLOPs of one forward, and of one forward and backward, on a model without data."""
    tokens = torch.zeros(batch, context, dtype=torch.long, device="meta")
    # The plain attention path is made of products that the counter knows; the fused ones differ by device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        loss = model(tokens, tokens)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()


def saved_bytes(model: Decoder, batch: int, context: int) -> int:
    """Return the bytes that one forward saves for its backward, parameters left out."""
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage._cdata] = storage.nbytes()
        return tensor

    tokens = torch.zeros(batch, context, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens, tokens)
    for parameter in model.parameters():
        seen.pop(parameter.untyped_storage()._cdata, None)
    return sum(seen.values())
