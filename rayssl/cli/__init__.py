"""The command line."""

from rayssl.cli.entry import main

__all__ = ["main"]
