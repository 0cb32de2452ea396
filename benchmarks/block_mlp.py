"""An MLP whose hidden units are dropped in blocks, forward and backward, against the same MLP dense.

Ours is a decoder's MLP under ``LearnedBlockDropout``, with all that a training step does there: the
prediction of the masks, their draw, the penalty, and all gradients. The dense one is the same MLP without it.
Both compute their products in the same way: float32 through oneDNN, as `speed_up_` has it, or bfloat16. There
is no published twin here: the published masks drop what was computed before.
"""

import math
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from transformer_dropout.layers import LearnedBlockDropout
from transformer_dropout.recipe import Recipe, Rule
from transformer_dropout.surgery.regularize import regularize_
from transformer_dropout.surgery.speed_up import speed_up_
from transformer_dropout.tasks.language.decoder import MLP, Block, Decoder, DecoderConfig

from .rounds import timed_ratio
from .row import Budget, Measurement, Row

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def block_mlp_ratio(
    budget: Budget,
    *,
    width: int = 768,
    tokens: int = 2048,
    block: int = 256,
    keep: float = 0.25,
    dtype: torch.dtype = torch.float32,
    estimator: str = "sampled",
) -> Measurement:
    """Time an MLP's forward and backward, dense and with dropped blocks skipped.

    Args:
        budget: how many rounds; a quick one takes half of the tokens.
        width: of the MLP's input; it has four times as many hidden units.
        tokens: how many in the batch.
        block: units of a block.
        keep: the fraction of the pairs of a token and a block that are kept, about.
        dtype: of weights and input.
        estimator: of the masks' gradient.
    """
    tokens = tokens // 2 if budget.quick else tokens
    ours, dense, layer = sides(width, block, keep, dtype, estimator)
    x = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    gradient = torch.randn(tokens, width, dtype=dtype)
    error, share = difference(ours, dense, layer, x, gradient)
    assert error < TOLERANCE[dtype], f"skipping differs from masking by {error:.1e}"
    return timed_ratio(
        {
            "reference": partial(forward_and_backward, dense, None, x, gradient),
            "ours": partial(forward_and_backward, ours, layer, x, gradient),
        },
        budget,
        gate=f"result and weight gradients equal the masked MLP's within {error:.0e} of their norms",
        about={
            "shape": {"tokens": tokens, "width": width, "hidden": 4 * width, "block": block},
            "keep": round(share, 3),
            "computed": layer.computed,
            "predictor_parameters": sum(parameter.numel() for parameter in layer.parameters()),
            "estimator": estimator,
            "dtype": str(dtype).removeprefix("torch."),
        },
    )


def sides(
    width: int, block: int, keep: float, dtype: torch.dtype, estimator: str
) -> tuple[MLP, MLP, LearnedBlockDropout]:
    """Return the MLP with dropped blocks, the same MLP dense, and the layer in the first."""
    torch.manual_seed(0)
    models = [Decoder(8, DecoderConfig(width=width, heads=1, blocks=1, context=1)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    rule = Rule(
        "mlp_hidden",
        LearnedBlockDropout,
        block=block,
        shift=2 * math.acos(math.sqrt(keep)),
        estimator=estimator,
        weight=0.1,
    )
    layer: Any = regularize_(models[0], Recipe([rule])).placed[0].layer
    for model in models:
        speed_up_(model.to(dtype))
    ours, dense = (cast(Block, model.blocks[0]).mlp for model in models)
    return ours, dense, layer


def forward_and_backward(
    mlp: MLP, layer: LearnedBlockDropout | None, x: Tensor, gradient: Tensor
) -> dict[str, Tensor]:
    """Run an MLP forward and backward; return its result and the gradients of its own weights."""
    x.grad = None
    mlp.zero_grad()
    out = mlp(x)
    ends, gradients = [out], [gradient]
    if layer is not None:
        ends, gradients = [out, layer.take_penalty()], [gradient, torch.ones(())]
    torch.autograd.backward(ends, gradients)
    weights = {"first": mlp.expand.weight, "second": mlp.projection.weight}
    return {"result": out.detach()} | {name: cast(Tensor, weight.grad) for name, weight in weights.items()}


def difference(
    ours: MLP, dense: MLP, layer: LearnedBlockDropout, x: Tensor, gradient: Tensor
) -> tuple[float, float]:
    """Return how far skipping is from masking, relative to the norms, and the fraction kept."""
    masks: list[Tensor] = []
    layer.observer = lambda keep_probability, mask: masks.append(mask)
    skipped = forward_and_backward(ours, layer, x, gradient)
    layer.observer = None
    hook = dense.activation.register_forward_hook(partial(masked, masks[0].to(x.dtype)))
    expected = forward_and_backward(dense, None, x, gradient)
    hook.remove()
    errors = [(skipped[name] - wanted).norm() / wanted.norm() for name, wanted in expected.items()]
    return max(errors).item(), masks[0].float().mean().item()


def masked(mask: Tensor, module: nn.Module, arguments: tuple, hidden: Tensor) -> Tensor:
    """Forward hook: multiply blocks of hidden units by a mask."""
    return (hidden.unflatten(-1, (mask.shape[-1], -1)) * mask.unsqueeze(-1)).flatten(-2)


TARGETS = {torch.float32: 2.1, torch.bfloat16: 1.5}

ROWS = tuple(
    Row(
        name=f"block-masked MLP, blocks of {block}, keep 0.25, {str(dtype).removeprefix('torch.')}: "
        "dense / ours",
        path="pure",
        target=target,
        measure=partial(block_mlp_ratio, block=block, dtype=dtype),
        obstacle="moving the tokens of each block, the prediction of the masks, the blocks that are probed.",
    )
    for dtype, target in TARGETS.items()
    for block in (128, 256)
)
