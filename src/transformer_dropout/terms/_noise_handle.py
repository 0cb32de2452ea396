"""What the handles of noisy training share: a strength that a schedule may move, and a way out."""

from ..errors import InputError
from ..kernels.compiled_hooks import NoticedHook
from ..schedules import Schedule
from .weights import value_at


class NoiseHandle:
    """Steers noise that hooks make in training, and takes it out again.

    Args:
        schedule: the strength over training.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._hooks: list[NoticedHook] = []

    def set_progress(self, progress: float) -> None:
        """Move the strength to its value at ``progress``, a fraction in [0, 1]."""
        self._set(value_at(self.schedule, progress))

    def _set(self, value: float) -> None:
        raise NotImplementedError

    def remove(self) -> None:
        """Take the noise out; the model then computes what it would without, to the bit.

        Raises:
            InputError: when it was removed already.
        """
        if not self._hooks:
            raise InputError("This was removed already; call the function that made the handle again.")
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
