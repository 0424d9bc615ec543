"""Computes the figures of a frozen encoder."""
