"""Tensors to a scalar: pure functions, one formula a file."""
