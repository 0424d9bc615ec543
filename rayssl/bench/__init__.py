"""Measurements for a user's own machines, to make before a big job. They are functions that return figures."""
