"""Which utterances every rank gets at every step, computed from the manifest."""
