"""Which settings? Every method searched under the same budget, and what that shows."""
