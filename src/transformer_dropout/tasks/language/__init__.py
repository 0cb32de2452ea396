"""The reference decoder on text, from scratch."""
