"""What is told of a command that cannot be parsed: one line with the way out, where argparse shows the usage first."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import NoReturn

_CHOICE = re.compile(r"^argument (?P<what>.+?): invalid choice: '(?P<given>.*)' \(choose from (?P<known>.*)\)$")
_MISSING = "the following arguments are required: "


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line: what is wrong, and what to type instead. The exit status is 2."""

    def error(self, message: str) -> NoReturn:
        """Prints the line, and leaves."""
        self.exit(2, f"{self.prog}: {self._told(message)}\n")

    def _told(self, message: str) -> str:
        chosen = _CHOICE.match(message)
        if chosen is not None:
            known = re.findall(r"[\w-]+", chosen["known"])
            listed = f"choose one of {', '.join(known)}; " if len(known) < 10 else ""
            what = "verb " if chosen["what"] == "VERB" else ""
            return f"there is no {what}'{chosen['given']}'; {_near(chosen['given'], known) or listed}{self._help()}"
        if message.startswith(_MISSING):
            names = [name for name in message.removeprefix(_MISSING).split(", ") if "=" not in name]
            return f"give {' and '.join(names)}; {self.epilog if self._has_example() else self._help()}"
        return f"{message}; {self._help()}"

    def refuse(self, given: str) -> NoReturn:
        """Leaves with a line about ``given``, an argument that the verb does not know."""
        self.exit(2, f"{self.prog}: {self._unknown(given)}\n")

    def _unknown(self, given: str) -> str:
        key = given.lstrip("-")
        if given == key:
            return f"'{given}' is too much; {self.epilog if self._has_example() else self._help()}"
        if "." in key or "=" in key:
            return f"there is no option '{given}'; a key is written without dashes: {key}"
        options = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        keys = any(action.dest == "overrides" for action in self._actions)
        written = "a key is written without dashes, as training.epochs=3; " if keys else ""
        return f"there is no option '{given}'; {_near(given, options) or written}{self._help()}"

    def _has_example(self) -> bool:
        return (self.epilog or "").startswith("example: ")

    def _help(self) -> str:
        return f"see {self.prog} --help"


def _near(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'? or " if close else ""
