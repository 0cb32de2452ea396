"""What an arm may be called, and what its folder is called."""

import re

from ..errors import InputError

LONGEST_NAME = 120


def check_name(name: str) -> None:
    """Refuse a name that no table, terminal or folder could hold.

    Raises:
        InputError: for an empty or long one, or one with characters that cannot be printed.
    """
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise InputError(
            f"The name of an arm is text of 1 to {LONGEST_NAME} characters that can be printed, not "
            f"{name[:20]!r}."
        )


def folder_name(name: str, otherwise: str) -> str:
    """Return a name as that of a folder; another word where nothing of it is left."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or otherwise
