"""The reference decoder on text, from scratch."""

from .task import Language

__all__ = ["Language"]
