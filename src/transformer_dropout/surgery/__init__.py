"""Changing a model that exists: where layers go in, how they act, and the way back."""
