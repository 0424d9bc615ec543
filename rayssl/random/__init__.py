"""Keyed draws: the same numbers from the same keys, in NumPy and in torch."""
