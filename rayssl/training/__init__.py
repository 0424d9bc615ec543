"""The training loop, its state and its checkpoints. This package uses torch, not Ray."""
