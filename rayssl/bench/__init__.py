"""Measurements a user makes on their own machines before a big job: plain functions that return figures."""
