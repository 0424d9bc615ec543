"""Spherical k-means over points in one process or in many."""
