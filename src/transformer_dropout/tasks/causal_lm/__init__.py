"""Fine-tuning a causal language model of transformers, in full or by LoRA."""

from .task import CausalLM

__all__ = ["CausalLM"]
