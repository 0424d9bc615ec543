"""Declares verbs: one sub-parser for each function, and the arguments that several verbs share.

A file of verbs has `add(verbs)`, which calls `declare` for each of its functions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeAlias

Verb: TypeAlias = Callable[[argparse.Namespace], int]
Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Argument: TypeAlias = tuple[str, dict[str, Any]]

CONFIG: Argument = ("config", {"metavar": "CONFIG", "help": "YAML file or URI"})
RUN: Argument = ("run", {"metavar": "RUN", "help": "folder or URI of a run (the 'run' of its configuration)"})
OVERRIDES: Argument = (
    "overrides",
    {"nargs": "*", "metavar": "key.path=value", "help": "override any key; the value is read as YAML"},
)


def declare(verbs: Verbs, function: Verb, text: str, example: str, *arguments: Argument) -> argparse.ArgumentParser:
    """The sub-parser of a verb. Its name and its description are those of ``function`` (``list_`` is ``list``).

    ``text``: its line in the list of verbs. ``example``: arguments for the example at the end of its help.
    """
    parser = verbs.add_parser(function.__name__.rstrip("_"), help=text, description=f"{function.__doc__}")
    parser.epilog = f"example: {parser.prog} {example}"
    for argument, options in arguments:
        parser.add_argument(argument, **options)
    parser.set_defaults(verb_function=function, verb_parser=parser)
    return parser


def add_whole_numbers(parser: argparse.ArgumentParser, *options: tuple[str, int, str]) -> None:
    """Adds options that take an integer. Each has a name, a default and a help text."""
    for name, default, text in options:
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default {default})")


def count(text: str) -> int:
    """An argument that is an integer of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got '{text}'")
    return int(text)


def add_screen(parser: argparse.ArgumentParser, quiet: str) -> None:
    """The options of a verb that shows how far it is; ``quiet`` says what is shown with ``--quiet``."""
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_true", help=quiet)
    text = "show also what Ray's own processes print, and which process each line is from"
    shown.add_argument("--verbose", action="store_true", help=text)
    text = "how progress is shown: a bar on a terminal and else lines (auto), lines, or each event as JSON"
    parser.add_argument("--log", choices=("auto", "plain", "json"), default="auto", help=text)
