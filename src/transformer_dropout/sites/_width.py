"""How many channels the tensor at a place has."""

from typing import Any

from torch import nn

# What the configs of the families call the width of the residual stream, and of the MLP's hidden units.
WIDTH_FIELDS = ("hidden_size", "d_model", "n_embd", "dim")
HIDDEN_FIELDS = ("intermediate_size", "d_ff", "ffn_dim", "hidden_dim", "n_inner")


def width_of(model: nn.Module, kind: str, access: str, module: nn.Module) -> int | None:
    """Return the channels of the tensor at a place; None when nothing says."""
    if access == "input":
        return in_features(module)
    if access == "output":
        found = out_features(module)
        if found is not None:
            return found
    if kind == "mlp_hidden":
        return first_in_config(model, HIDDEN_FIELDS) or four_times(first_in_config(model, WIDTH_FIELDS))
    return first_in_config(model, WIDTH_FIELDS)


def four_times(width: int | None) -> int | None:
    """Return the customary width of an MLP's hidden layer."""
    return None if width is None else 4 * width


def first_in_config(model: nn.Module, names: tuple[str, ...]) -> int | None:
    """Return the first of the named numbers that the model's config has."""
    config = getattr(model, "config", None)
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def in_features(module: nn.Module) -> int | None:
    """Return the input channels of a linear layer, or of the first one inside a module."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            return part.in_features
        # GPT-2's own linear layer.
        channels: Any = getattr(part, "nx", None)
        if isinstance(channels, int):
            return channels
    return None


def out_features(module: nn.Module) -> int | None:
    """Return the output channels of a linear layer, an embedding or a norm; None for anything else."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    return None
