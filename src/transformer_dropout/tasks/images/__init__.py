"""Small grey images into classes: digits that come with the package, or IDX files of the user's."""

from .task import Images

__all__ = ["Images"]
