"""Where people already train: Hugging Face transformers."""
