"""The command line: ``rayssl init | show | prepare | train | sweep | evaluate | embed | export | report | check |
doctor | bench``.

Each group of verbs has a file: `start`, `configuration`, `data`, `training`, `results`, `components`, `machine`. To add
a verb, write a function in one of them and a line in that file's ``add``.
"""

from rayssl.cli.entry import main

__all__ = ["main"]
