"""A table into numbers: one that comes with the package, or a CSV of the user's."""

from .task import Regression

__all__ = ["Regression"]
