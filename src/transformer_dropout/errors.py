"""The one exception for what a user can put right."""

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """One sentence that says what is wrong and what to type instead.

    The command line prints it without a traceback and exits with code 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known word, else the list of known words."""
    choices = sorted(known)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(choices)}." if choices else ""


def check_choice(value: str, allowed: Sequence[str], name: str) -> None:
    """Refuse a word that is not among the allowed ones.

    Raises:
        InputError: naming the nearest of them.
    """
    if value not in allowed:
        raise InputError(f"{name} is {value!r}.{did_you_mean(str(value), allowed)}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, and the next where it ends in a colon; else its type.

    A lazy import says no more than that it failed, so what is behind it is told in its place.
    """
    while isinstance(error, ImportError) and error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
