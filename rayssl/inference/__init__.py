"""Uses a trained run: load it, embed with it, export it. This package uses torch, not Ray."""
