"""TensorBoard's files beside the records."""

from pathlib import Path
from typing import Any

from ..errors import InputError


def event_files(folder: Path, step: int) -> Any:
    """Return a TensorBoard writer that forgets what lies behind a step.

    Raises:
        InputError: when TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "training.tensorboard needs TensorBoard; run: pip install 'transformer-dropout[tensorboard]'"
        ) from None
    return SummaryWriter(folder, purge_step=step)
