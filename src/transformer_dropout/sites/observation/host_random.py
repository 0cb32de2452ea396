"""Random numbers that are not torch's: those of Python's ``random`` and of NumPy's global generator."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Generator = tuple[Callable[[], Any], Callable[[Any], None]]


def generators() -> dict[str, Generator]:
    """Return, by name, how the state of each global generator is read and set; NumPy's once it is loaded."""
    found: dict[str, Generator] = {"random": (random.getstate, random.setstate)}
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        found["numpy.random"] = (lambda: numpy_random.get_state(legacy=False), numpy_random.set_state)
    return found


@contextmanager
def host_random_unchanged() -> Iterator[None]:
    """Put the states back at the end."""
    before = [(write, read()) for read, write in generators().values()]
    try:
        yield
    finally:
        for write, state in before:
            write(state)


class HostRandomWatch:
    """Tells which generators were drawn from since it was last asked."""

    def __init__(self) -> None:
        self.states = self.read()

    def read(self) -> dict[str, Any]:
        """Return every state in a form that can be compared."""
        return {name: comparable(read()) for name, (read, _) in generators().items()}

    def drawn(self) -> list[str]:
        """Return the names of the generators whose state has moved since the last call."""
        before, self.states = self.states, self.read()
        return [name for name, state in self.states.items() if name in before and state != before[name]]


def comparable(state: Any) -> Any:
    """Return a state with bytes in place of arrays."""
    if isinstance(state, dict):
        return {name: comparable(value) for name, value in state.items()}
    return state.tobytes() if hasattr(state, "tobytes") else state
