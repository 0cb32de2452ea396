"""Fine-tuning a pre-trained classifier of sentences, the same for every arm."""
