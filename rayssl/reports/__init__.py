"""Runs on disk to pictures and tables."""
