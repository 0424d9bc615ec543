"""Evaluates a run on its test corpus."""
