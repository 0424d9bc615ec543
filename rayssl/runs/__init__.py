"""The folder of a run: what exactly ran, and reading it back."""
