"""Measurements on a cluster: what the memory's actors cost, and how fast batches reach the ranks."""
