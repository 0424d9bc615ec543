"""Pure functions from tensors to a scalar loss. One file for each formula."""
