"""The command line: ``rayssl init | show | fetch | prepare | train | sweep | evaluate | stage | export | report |
embed | score | publish | check | doctor | bench | keys | schema | list | completion``.

Each group of verbs has a file: `start`, `configuration`, `fetching`, `data`, `training`, `results`, `using`,
`components`, `machine`, `reference`. To add a verb, write a function in one of them and a line in that file's ``add``.
"""

from rayssl.cli.entry import main

__all__ = ["main"]
