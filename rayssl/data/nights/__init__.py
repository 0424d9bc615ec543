"""Nights of sleep: synthetic ones, files that hold them, and corpora of their epochs."""
