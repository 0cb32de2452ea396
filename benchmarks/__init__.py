"""Timings of this package against a reference twin built the way the published code is built."""
