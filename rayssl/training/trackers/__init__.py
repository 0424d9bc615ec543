"""Trackers: they take a run's figures."""
