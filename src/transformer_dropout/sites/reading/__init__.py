"""Reading a model's places off one observed run."""
