"""Fine-tuning a pre-trained classifier of sentences."""

from .task import Sentences

__all__ = ["Sentences"]
