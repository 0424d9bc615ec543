"""Checks whether a machine, its packages and its storage have what rayssl needs, and says what to fix."""
