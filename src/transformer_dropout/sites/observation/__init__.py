"""Watching a model run: which module, which call, which random operation, and no trace afterwards."""
