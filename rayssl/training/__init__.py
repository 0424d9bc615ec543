"""The loop and what it keeps: knows torch, not Ray."""
