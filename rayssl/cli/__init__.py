"""The command line: ``rayssl show | prepare | train | sweep | evaluate | embed | export | report | check | doctor |
bench``.

One file for each group of verbs: `configuration`, `data`, `training`, `results`, `components`, `machine`. A new verb is
a function there and a line in that file's ``add``.
"""

from rayssl.cli.entry import main

__all__ = ["main"]
