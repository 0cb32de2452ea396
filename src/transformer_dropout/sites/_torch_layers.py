"""The sites inside ``nn.TransformerEncoderLayer`` and ``nn.TransformerDecoderLayer``.

Their dropouts are hooked, never replaced: in evaluation the encoder layer takes a fused path around its own
modules unless one of them has a hook.
"""

from torch import nn

from ._places import Place, Places, output


def own_rate(path: str) -> tuple[Place, ...]:
    """An ``nn.Dropout`` whose output is hooked and whose own rate is silenced."""
    return output(path, rate=f"{path}.p")


def inner_rate(path: str) -> tuple[Place, ...]:
    """An ``nn.MultiheadAttention``, which reads its rate from an attribute and shows no weights."""
    return (Place(path=path, access="rate", rate=f"{path}.dropout"),)


ENCODER_LAYER: Places = {
    "attention_weights": inner_rate("self_attn"),
    "attention_output": own_rate("dropout1"),
    "mlp_hidden": own_rate("dropout"),
    "mlp_output": own_rate("dropout2"),
}

DECODER_LAYER: Places = {
    "attention_weights": inner_rate("self_attn") + inner_rate("multihead_attn"),
    "attention_output": own_rate("dropout1") + own_rate("dropout2"),
    "mlp_hidden": own_rate("dropout"),
    "mlp_output": own_rate("dropout3"),
}


def places_of(block: nn.Module) -> Places | None:
    """Return the places inside a block of torch's own; None for any other module."""
    if isinstance(block, nn.TransformerEncoderLayer):
        return ENCODER_LAYER
    if isinstance(block, nn.TransformerDecoderLayer):
        return DECODER_LAYER
    return None
