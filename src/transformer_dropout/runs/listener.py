"""What a run tells while it goes on."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """Where a run stands.

    Attributes:
        step, steps: optimizer steps done and to do; ``steps`` is None where nobody knows.
        loss: training loss of the last step, in nats.
        val_loss: of the last evaluation, in nats.
        keep: fraction kept by the masks at the last evaluation; None without learned masks.
    """

    step: int
    steps: int | None
    loss: float | None
    val_loss: float | None = None
    keep: float | None = None


def ignore(event: object) -> None:
    """Listen to nothing."""


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Whom a run tells.

    Attributes:
        progress: called a few times a second.
        message: called with one sentence a user should see.
    """

    progress: Callable[[RunProgress], None] = ignore
    message: Callable[[str], None] = ignore
